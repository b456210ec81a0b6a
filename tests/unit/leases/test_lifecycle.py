"""The life of a lease as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import StateConflict
from broker.leases.lifecycle import (
    QUICK_ATTEMPTS,
    STUCK_RETRY_MS,
    Event,
    after,
    ends_ms,
    expected,
    live,
    retry,
    sessions_end_ms,
    target,
)
from broker.model import ConnectionNumber, Lease, LeaseFacts, LeaseNumber, LeaseState, Stage, TokenNumber, UserName

S = LeaseState


@given(st.sampled_from([S.RESERVED, S.PREPARING]), st.lists(st.sampled_from(Event)))
def test_no_sequence_of_events_leaves_the_table(state: LeaseState, events: list[Event]) -> None:
    """From either beginning each event leads where the table says or is refused by name; only a user seen again leads on from gone."""
    for event in events:
        if state in expected(event):
            assert state is not S.GONE or event is Event.SEEN_AGAIN
            state = after(state, event)
            assert state is target(event)
        else:
            with pytest.raises(StateConflict, match=state.name.lower()):
                after(state, event)


@pytest.mark.parametrize(
    ("event", "states", "to"),
    [
        (Event.ISSUED, {S.RESERVED}, S.ACTIVE),
        (Event.PREPARED, {S.PREPARING}, S.PREPARED),
        (Event.HANDED_OUT, {S.PREPARED}, S.ACTIVE),
        (Event.RENEWED, {S.ACTIVE}, S.ACTIVE),
        (Event.ENDED, {S.RESERVED, S.PREPARING, S.PREPARED, S.ACTIVE, S.GRACE}, S.REVOKING),
        (Event.SPARED, {S.ACTIVE, S.GRACE}, S.GRACE),
        (Event.UNWANTED, {S.PREPARED}, S.REVOKING),
        (Event.ADVANCED, {S.REVOKING, S.STUCK}, S.REVOKING),
        (Event.DELAYED, {S.REVOKING, S.STUCK}, S.REVOKING),
        (Event.STUCK, {S.REVOKING, S.STUCK}, S.STUCK),
        (Event.FORGOTTEN, {S.ACTIVE, S.GRACE, S.REVOKING, S.STUCK}, S.GONE),
        (Event.SEEN_AGAIN, {S.GONE}, S.REVOKING),
        (Event.FINISHED, {S.REVOKING, S.STUCK}, S.GONE),
    ],
)
def test_the_table(event: Event, states: set[LeaseState], to: LeaseState) -> None:
    """Each event happens in just these states and leads to this one."""
    assert set(expected(event)) == states
    assert target(event) is to


def test_every_state_but_gone_can_be_left_towards_gone() -> None:
    """No lease is stranded: from each state some events lead to gone."""
    reached = {S.GONE}
    for _ in S:
        reached |= {state for event in Event if target(event) in reached for state in expected(event)}
    assert reached == set(S)


def test_live_leases_are_those_of_clients() -> None:
    """Pool users and tombstones are not live."""
    assert {state for state in S if live(state)} == {S.RESERVED, S.ACTIVE, S.GRACE, S.REVOKING, S.STUCK}


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_retry_is_bounded_and_spread(attempts: int, jitter: float) -> None:
    """Delays double from a second to five minutes, then stand at a quarter of an hour as stuck, each within a quarter."""
    tried = retry(attempts, jitter)
    quick = attempts + 1 < QUICK_ATTEMPTS
    base = min(300_000, 1_000 * 2 ** min(attempts, 20)) if quick else STUCK_RETRY_MS
    assert tried.attempts == attempts + 1
    assert tried.event is (Event.DELAYED if quick else Event.STUCK)
    assert 0.75 * base - 1 <= tried.delay_ms <= 1.25 * base


def test_the_jitter_matters() -> None:
    """Leases that failed together don't come back together."""
    assert retry(3, 0.0).delay_ms == 6_000
    assert retry(3, 0.5).delay_ms == 8_000
    assert retry(3, 0.999).delay_ms == 9_996


def _lease(state: LeaseState, due_ms: int, **facts: int) -> Lease:
    return Lease(
        number=LeaseNumber(1),
        state=state,
        stage=Stage.NONE,
        due_ms=due_ms,
        epoch=0,
        attempts=0,
        connection=ConnectionNumber(1),
        token=TokenNumber(1),
        facts=LeaseFacts(path="p", role="r", role_revision=1, connection_name="c", username=UserName("u"), **facts),
    )


@pytest.mark.parametrize(("due_ms", "expires_ms"), [(900, 100), (100, 900), (100, 100)])
def test_a_lease_ends_at_the_earlier_of_due_and_expiry(due_ms: int, expires_ms: int) -> None:
    """A claim that pushes the due time on prolongs nothing, and a token that ends earlier counts."""
    assert ends_ms(_lease(S.ACTIVE, due_ms, expires_ms=expires_ms)) == 100


TIME = st.integers(0, 1 << 53)


@given(TIME, TIME, st.integers(0, 3_600))
def test_sessions_go_on_for_the_grace_from_the_end_of_the_lease(due_ms: int, expires_ms: int, grace_s: int) -> None:
    """However often it is claimed and put off from then on, and to the millisecond."""
    active = _lease(S.ACTIVE, due_ms, expires_ms=expires_ms, session_grace_s=grace_s)
    until_ms = min(due_ms, expires_ms) + grace_s * 1_000
    assert sessions_end_ms(active) == until_ms
    spared = _lease(
        S.GRACE, due_ms + 900_000, expires_ms=expires_ms, revoke_started_ms=ends_ms(active), session_grace_s=grace_s
    )
    assert sessions_end_ms(spared) == until_ms


@given(st.sampled_from(LeaseState), TIME)
def test_only_what_ends_by_its_time_has_a_grace(state: LeaseState, at_ms: int) -> None:
    """What somebody ended, what is being made and what waits in a pool has none."""
    lease = _lease(state, at_ms, expires_ms=at_ms, revoke_started_ms=at_ms, session_grace_s=60)
    assert (sessions_end_ms(lease) is None) == (state not in (S.ACTIVE, S.GRACE))
