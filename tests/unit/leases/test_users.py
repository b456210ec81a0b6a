"""The marker that proves whose a database user is."""

from __future__ import annotations

from broker.leases.users import Markers
from broker.model import LeaseFacts, LeaseNumber, Terms, UserName

KEY = b"k" * 32


def _facts() -> LeaseFacts:
    return LeaseFacts(
        path="database/creds/app",
        role="app",
        role_revision=1,
        connection_name="main",
        username=UserName("v-one"),
        identity="123",
        terms=Terms(revocation=("x",)),
    )


def test_a_marker_is_bound_to_all_that_it_says() -> None:
    """Another broker, key, lease or name makes another marker; the same ones the same."""
    number, name = LeaseNumber(7), UserName("v-one")
    marker = Markers("abc", KEY).marker(number, name)
    assert marker == Markers("abc", KEY).marker(number, name)
    others = {
        Markers("abd", KEY).marker(number, name),
        Markers("abc", b"x" * 32).marker(number, name),
        Markers("abc", KEY).marker(LeaseNumber(8), name),
        Markers("abc", KEY).marker(number, UserName("v-two")),
    }
    assert len(others | {marker}) == 5
    assert all(other.rpartition(":")[2] != marker.rpartition(":")[2] for other in others)


def test_a_marker_shows_its_number_and_no_lease_id() -> None:
    """It names the broker and the internal number, with 128 bits of proof."""
    head, _, proof = Markers("abc", KEY).marker(LeaseNumber(7), UserName("v-one")).rpartition(":")
    assert head == "broker:v1:abc:7"
    assert len(proof) == 32


def test_the_engine_hears_what_revocation_needs() -> None:
    """Name, the server's identity, terms and marker come from the lease's facts."""
    user = Markers("abc", KEY).user(LeaseNumber(7), _facts())
    assert (user.name, user.identity, user.terms.revocation) == ("v-one", "123", ("x",))
    assert user.marker == Markers("abc", KEY).marker(LeaseNumber(7), UserName("v-one"))
