"""The words that every room shares: what a lease, a token and a stored document are. No I/O.

Times are Unix milliseconds (`_ms`) by broker time; spans are milliseconds (`_ms`) or, where the wire says so, seconds (`_s`).

What a store keeps sealed is written with keys of one letter or two, and what has its default is left out. A letter is never given a
second meaning, and a default never another value; a field that goes leaves its letter unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NewType, TypeAlias

from msgspec import Struct, field

from broker.secret import Secret

LeaseNumber = NewType("LeaseNumber", int)
"""The lease's time-ordered number: what the store, the engines and the marker know it by."""
LeaseId = NewType("LeaseId", str)
"""What the client knows the lease by: path, slash, 24 base62 characters. Whoever holds it may renew, so it stays out of databases."""
TokenNumber = NewType("TokenNumber", int)
Accessor = NewType("Accessor", str)
UserName = NewType("UserName", str)
ConnectionNumber = NewType("ConnectionNumber", int)
"""Number of a connection's document; survives a rename to nothing and is never used again."""

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

NO_TOKEN = TokenNumber(0)


class LeaseState(IntEnum):
    """Where a lease is in its life (see docs/architecture.md, "The life of a lease")."""

    RESERVED = 0
    PREPARING = 1
    PREPARED = 2
    ACTIVE = 3
    REVOKING = 4
    STUCK = 5
    GONE = 6
    GRACE = 7
    """Its time is over and its login off, or about to be; its open sessions may go on."""


class Stage(IntEnum):
    """What has already been done, durably, of a revocation."""

    NONE = 0
    LOGIN_OFF = 1
    SESSIONS_ENDED = 2
    OBJECTS_RELEASED = 3
    DROPPED = 4
    ABSENT = 5


_TERMS_KEYS = {"creation": "c", "revocation": "r", "renewal": "n", "rollback": "b", "options": "o"}


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True, rename=_TERMS_KEYS):
    """What a role tells the engine to do for its users; kept with each lease, so that a deleted role strands none.

    The meaning of the texts is the engine's (SQL for PostgreSQL). `options` are engine-specific and were checked by it.
    """

    creation: tuple[str, ...] = ()
    revocation: tuple[str, ...] = ()
    renewal: tuple[str, ...] = ()
    rollback: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


_LEASE_KEYS = {
    "path": "p",
    "role": "r",
    "role_revision": "rr",
    "connection_name": "c",
    "username": "u",
    "identity": "o",
    "display_name": "d",
    "accessor": "a",
    "terms": "T",
    "issued_ms": "i",
    "renewed_ms": "n",
    "expires_ms": "e",
    "max_expires_ms": "m",
    "default_ttl_s": "t",
    "capped_by": "cb",
    "revoke_started_ms": "rs",
    "disabled_ms": "ds",
    "dropped_ms": "dr",
    "reason": "w",
    "failure": "f",
    "failing_since_ms": "fs",
    "remedy": "rm",
    "recipe": "k",
    "session_grace_s": "g",
}


class LeaseFacts(Struct, frozen=True, kw_only=True, omit_defaults=True, rename=_LEASE_KEYS):
    """The part of a lease that is kept sealed."""

    path: str
    """`<mount>/creds/<role>`, the lease id without its last part."""
    role: str
    role_revision: int
    connection_name: str
    username: UserName
    identity: str = ""
    """What the server itself calls the user (PostgreSQL: its OID); empty until it has said so."""
    display_name: str = ""
    accessor: Accessor = Accessor("")
    """Of the token that it belongs to."""
    terms: Terms = Terms()
    recipe: str = ""
    """Digest of what the role made its user from; of a role that would make another one today it differs."""
    password: Secret | None = None
    """Only while it still has to be handed out, or where the caller asked to be able to ask again."""
    issued_ms: int = 0
    renewed_ms: int = 0
    expires_ms: int = 0
    """When the lease ends by itself; the due time of an active lease says the same in clear."""
    max_expires_ms: int = 0
    """Past this no renewal goes."""
    default_ttl_s: int = 0
    session_grace_s: int = 0
    """For how long its open sessions may go on when its time is over."""
    capped_by: str = ""
    """What made the TTL shorter than asked: `""`, `max_ttl`, `token`, `ttl_jitter`."""
    revoke_started_ms: int = 0
    disabled_ms: int = 0
    dropped_ms: int = 0
    reason: str = ""
    """Why it is being revoked: `revoked`, `recovered`, `role changed` ...; empty where its time says it (`expired`)."""
    failure: str = ""
    """The last failure of its revocation, scrubbed."""
    failing_since_ms: int = 0
    remedy: tuple[str, ...] = ()
    """Statements that would let a stuck revocation finish."""


class Lease(Struct, frozen=True, kw_only=True):
    """One row of the store: what its indexes need in clear, and the sealed facts opened."""

    number: LeaseNumber
    state: LeaseState
    stage: Stage
    due_ms: int
    """When something is next to be done: expiry, retry, end of a claim, or when a tombstone may be tidied."""
    epoch: int
    attempts: int
    connection: ConnectionNumber
    token: TokenNumber
    facts: LeaseFacts


_TOKEN_KEYS = {
    "accessor": "a",
    "policies": "p",
    "display_name": "d",
    "path": "q",
    "meta": "m",
    "created_ms": "c",
    "creation_ttl_s": "t",
    "explicit_max_ttl_s": "x",
    "period_s": "v",
    "renewable": "n",
    "orphan": "o",
    "num_uses": "u",
    "entity_id": "e",
    "renewed_ms": "w",
}


class TokenFacts(Struct, frozen=True, kw_only=True, omit_defaults=True, rename=_TOKEN_KEYS):
    """The part of a token that is kept sealed. The token itself is not kept: only its keyed hash is."""

    accessor: Accessor
    policies: tuple[str, ...]
    display_name: str
    path: str
    """The request path that made it, e.g. `auth/token/create`."""
    meta: Mapping[str, str] | None = None
    created_ms: int = 0
    creation_ttl_s: int = 0
    explicit_max_ttl_s: int = 0
    period_s: int = 0
    renewable: bool = True
    orphan: bool = False
    num_uses: int = 0
    entity_id: str = ""
    renewed_ms: int = 0


class Token(Struct, frozen=True, kw_only=True):
    """One row of the store for a service token."""

    number: TokenNumber
    parent: TokenNumber
    """`NO_TOKEN` for orphans and the root token."""
    expires_ms: int | None
    uses_left: int | None
    """None: no limit."""
    digest: bytes
    """Keyed hash of the token's text."""
    facts: TokenFacts


class Document(Struct, frozen=True, kw_only=True):
    """A named configuration object (connection, role ...) in one of its revisions; name and body are kept sealed."""

    kind: str
    name: str
    number: int
    """Made once when the name is first written; an update keeps it, a deletion and re-creation does not."""
    revision: int
    """Store-wide, ever growing: the change counter at its last write."""
    deleted: bool
    body: bytes
