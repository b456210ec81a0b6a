"""Facts as bytes: nothing is lost, defaults cost nothing, and keys never change their meaning."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from broker.model import Accessor, LeaseFacts, Terms, TokenFacts, UserName
from broker.secret import Secret
from broker.store.sqlite import codec

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
TIME = st.integers(0, 1 << 53)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
TERMS = st.builds(
    Terms, creation=TEXTS, revocation=TEXTS, renewal=TEXTS, rollback=TEXTS, options=st.dictionaries(TEXT, JSON, max_size=3)
)
LEASES = st.builds(
    LeaseFacts,
    path=TEXT,
    role=TEXT,
    role_revision=TIME,
    connection_name=TEXT,
    username=TEXT,
    identity=TEXT,
    display_name=TEXT,
    accessor=TEXT,
    terms=TERMS,
    password=st.none() | TEXT.map(Secret),
    issued_ms=TIME,
    renewed_ms=TIME,
    expires_ms=TIME,
    max_expires_ms=TIME,
    default_ttl_s=TIME,
    capped_by=TEXT,
    revoke_started_ms=TIME,
    disabled_ms=TIME,
    dropped_ms=TIME,
    reason=TEXT,
    failure=TEXT,
    failing_since_ms=TIME,
    remedy=TEXTS,
    recipe=TEXT,
    session_grace_s=TIME,
)
TOKENS = st.builds(
    TokenFacts,
    accessor=TEXT,
    policies=TEXTS,
    display_name=TEXT,
    path=TEXT,
    meta=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
    created_ms=TIME,
    creation_ttl_s=TIME,
    explicit_max_ttl_s=TIME,
    period_s=TIME,
    renewable=st.booleans(),
    orphan=st.booleans(),
    num_uses=TIME,
    entity_id=TEXT,
    renewed_ms=TIME,
)
LEAST = LeaseFacts(path="m/creds/r", role="r", role_revision=1, connection_name="c", username=UserName("u"))


@given(LEASES)
def test_lease_facts_come_back_as_they_were(facts: LeaseFacts) -> None:
    """Whatever they hold; the password travels beside them."""
    password = None if facts.password is None else facts.password.reveal().encode()
    assert codec.unpack_lease(codec.pack_lease(facts), password) == facts


@given(TOKENS, st.binary(max_size=64))
def test_token_facts_come_back_as_they_were(facts: TokenFacts, digest: bytes) -> None:
    """Whatever they hold, with the digest."""
    assert codec.unpack_token(codec.pack_token(facts, digest)) == (facts, digest)


def test_password_is_not_among_the_packed_facts() -> None:
    """It is sealed by itself, so that erasing it needs no key."""
    assert b"hunter2" not in codec.pack_lease(LeaseFacts(**_given(LEAST), password=Secret("hunter2")))


def test_defaults_take_no_room() -> None:
    """A row costs what was said about the lease, not what could be."""
    assert orjson.loads(codec.pack_lease(LEAST)) == {"p": "m/creds/r", "r": "r", "rr": 1, "c": "c", "u": "u"}


def test_every_field_has_a_short_key_of_its_own() -> None:
    """A field that is added to the model without one would cost every row its name; two with one would lose a value."""
    for kind, spare in ((LeaseFacts, "password"), (Terms, ""), (TokenFacts, "")):
        keys = [key for key in kind.__struct_encode_fields__ if key != spare]
        assert all(len(key) <= 2 for key in keys)
        assert len(set(keys)) == len(kind.__struct_fields__) - bool(spare)


def test_what_earlier_versions_packed_is_still_read() -> None:
    """The meaning of each key is fixed by what lies in stores already."""
    lease = codec.unpack_lease(
        b'{"p":"m/creds/r","r":"r","rr":4,"c":"pg","u":"v-1","o":"16391","d":"token-ci","a":"acc","i":1,"n":2,"e":3,"m":4,"t":5,'
        b'"cb":"token","rs":6,"ds":7,"dr":8,"w":"expired","f":"no","fs":9,"rm":["x"],'
        b'"T":{"c":["C"],"r":["R"],"n":["N"],"b":["B"],"o":{"k":[1]}}}',
        b"pw",
    )
    assert lease == LeaseFacts(
        path="m/creds/r",
        role="r",
        role_revision=4,
        connection_name="pg",
        username=UserName("v-1"),
        identity="16391",
        display_name="token-ci",
        accessor=Accessor("acc"),
        terms=Terms(creation=("C",), revocation=("R",), renewal=("N",), rollback=("B",), options={"k": [1]}),
        password=Secret("pw"),
        issued_ms=1,
        renewed_ms=2,
        expires_ms=3,
        max_expires_ms=4,
        default_ttl_s=5,
        capped_by="token",
        revoke_started_ms=6,
        disabled_ms=7,
        dropped_ms=8,
        reason="expired",
        failure="no",
        failing_since_ms=9,
        remedy=("x",),
    )
    token = codec.unpack_token(
        b'{"a":"acc","p":["x"],"d":"n","q":"auth/token/create","m":{"k":"v"},"c":1,"t":2,"x":3,"v":4,"n":false,"o":true,"u":5,'
        b'"e":"ent","w":6,"h":"00ff"}'
    )
    assert token == (
        TokenFacts(
            accessor=Accessor("acc"),
            policies=("x",),
            display_name="n",
            path="auth/token/create",
            meta={"k": "v"},
            created_ms=1,
            creation_ttl_s=2,
            explicit_max_ttl_s=3,
            period_s=4,
            renewable=False,
            orphan=True,
            num_uses=5,
            entity_id="ent",
            renewed_ms=6,
        ),
        b"\x00\xff",
    )


def _given(facts: LeaseFacts) -> dict[str, object]:
    return {name: getattr(facts, name) for name in ("path", "role", "role_revision", "connection_name", "username")}
