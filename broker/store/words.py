"""What a store is asked with, and what it answers, beside the leases, tokens and documents themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from broker.model import NO_TOKEN, ConnectionNumber, LeaseFacts, LeaseNumber, LeaseState, Stage, TokenNumber


class Refusal(StrEnum):
    """Why the store did not take a reservation or a claim."""

    TOKEN_ENDED = "token ended"
    ROLE_LIMIT = "role limit"
    TOKEN_LIMIT = "token limit"
    NOT_PREPARED = "not prepared"
    """The prepared user was taken or removed meanwhile: take another."""
    ASKED_BEFORE = "asked before"
    """A live lease has this ask key already: `Store.asked` finds it."""


class Limits(Struct, frozen=True, kw_only=True):
    """The most live leases (reserved, active, in their grace or being revoked) that a role and a token may have; 0 means no limit."""

    per_role: int = 0
    per_token: int = 0


class Reservation(Struct, frozen=True, kw_only=True):
    """A lease to write down before its user is made (`reserved`), or a pool user to prepare (`preparing`, `token` 0)."""

    number: LeaseNumber
    connection: ConnectionNumber
    token: TokenNumber
    facts: LeaseFacts
    due_in_ms: int
    """When the intent, left alone, falls due for recovery."""
    limits: Limits = Limits()
    ask_key: bytes | None = None
    """16 bytes that stand for "the same question" (idempotency key, or token and role); unique among live leases."""
    asker: TokenNumber = NO_TOKEN
    """Who asked, where the lease is another token's: it must not have ended either."""


class Handout(Struct, frozen=True, kw_only=True):
    """A prepared user to turn into an active lease of `token`: `prepared` -> `active`."""

    number: LeaseNumber
    token: TokenNumber
    facts: LeaseFacts
    due_in_ms: int
    limits: Limits = Limits()
    ask_key: bytes | None = None
    asker: TokenNumber = NO_TOKEN
    """As in a reservation."""


class Move(Struct, frozen=True, kw_only=True):
    """One transition of one lease. It happens only from one of the states `expect`, and only in `epoch` where that is given."""

    number: LeaseNumber
    expect: Collection[LeaseState]
    to: LeaseState
    due_in_ms: int
    stage: Stage = Stage.NONE
    attempts: int = 0
    epoch: int | None = None
    facts: LeaseFacts | None = None
    """None keeps the facts as they are."""
    token: TokenNumber | None = None
    """Where given, the move happens only if neither this token has ended nor, where it makes a lease active, the one that the lease
    belongs to; checked in the same statement."""


class Step(Struct, frozen=True, kw_only=True):
    """One transition of many leases that were claimed in the same epoch, to `revoking` or `gone`; facts and attempts stay."""

    numbers: Collection[LeaseNumber]
    epoch: int
    expect: Collection[LeaseState]
    to: LeaseState
    stage: Stage
    due_in_ms: int | None
    """None leaves state and due time as they are and writes the stage alone: of leases that are `revoking`, and whose claim holds
    long enough. It spares the due index a change for each."""


class DocumentChange(Struct, frozen=True):
    """What a document shall be: written, or deleted where there is no body."""

    kind: str
    name: str
    body: bytes | None = None


class AuditHead(Struct, frozen=True):
    """The newest audit entry known to be on disc: its sequence number and its MAC (32 bytes)."""

    sequence: int
    mac: bytes


class Tally(Struct, frozen=True, kw_only=True):
    """How many leases are in each state; for one connection, or for all."""

    by_state: dict[LeaseState, int]

    def __getitem__(self, state: LeaseState) -> int:
        return self.by_state.get(state, 0)


class Backlog(Struct, frozen=True):
    """Leases whose end has come, while they are neither gone nor stuck: how many, and since when (ms) the oldest waits."""

    count: int = 0
    oldest_ms: int | None = None


class CrowdedTokens(Struct, frozen=True):
    """Tokens of one page that hold many live leases, and how many; `last` is where the next page begins, None after the last."""

    live: Mapping[TokenNumber, int]
    last: TokenNumber | None


class TokenRenewal(Struct, frozen=True):
    """The new end of a token, and those of its descendants that now end sooner for it."""

    expires_ms: int
    shortened: Sequence[TokenNumber]


class TokenEnd(StrEnum):
    """What happens to the children of a token that is ended."""

    WITH_CHILDREN = "with children"
    ORPHAN_CHILDREN = "orphan children"
