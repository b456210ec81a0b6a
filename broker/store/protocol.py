"""What a store promises. SQLite is the first; a replicated PostgreSQL will meet the same protocol and pass the same suite.

Rules that every method keeps (docs/architecture.md, "Rules of the store"):

- A transition names the state it expects, works on a batch, and answers which rows it changed. No read-then-write over two calls.
- When a write returns, it is durable. `StoreUnavailable`: nothing was done. `OutcomeUnknown`: it may have been; `barrier()` settles it.
- Callers pass spans; the store stamps times, by its clock (`now_ms`).
- A claim of due work raises the row's epoch and pushes its due time forward, so the work of a dead owner falls due again by itself.
  A store that knows when it opens that an owner is dead makes due at once what that one had claimed and not yet begun.
- Facts, names and bodies are sealed before they touch a file and opened on the way out; `SealBroken` when one does not open.
  Claims and lists of leases or tokens pass over such a row and log its number: it must not hold up the others for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from broker.model import ConnectionNumber, Document, Lease, LeaseNumber, LeaseState, Token, TokenFacts, TokenNumber
from broker.store.words import (
    AuditHead,
    Backlog,
    CrowdedTokens,
    DocumentChange,
    Handout,
    Move,
    Refusal,
    Reservation,
    Step,
    Tally,
    TokenEnd,
    TokenRenewal,
)


class Store(Protocol):
    """Leases, tokens and documents, durable and sealed."""

    def now_ms(self) -> int:
        """Broker time as this store stamps it."""
        ...

    async def barrier(self) -> None:
        """Returns when every write that may still be under way has either happened or never will."""
        ...

    async def close(self) -> None:
        """Finishes what was accepted, writes the high-water time and the audit head, and lets go of the files."""
        ...

    # leases ---------------------------------------------------------------------------------------------------------

    async def reserve(self, reservations: Sequence[Reservation]) -> Sequence[Refusal | None]:
        """Writes intents as `reserved`, each checked against its tokens and limits in the same statement. None: accepted."""
        ...

    async def prepare(self, reservations: Sequence[Reservation]) -> None:
        """Writes intents of pool users as `preparing`."""
        ...

    async def hand_out(self, handouts: Sequence[Handout]) -> Sequence[Refusal | None]:
        """Turns `prepared` leases into `active` ones, each checked against its tokens and limits. None: accepted."""
        ...

    async def move(self, moves: Sequence[Move]) -> frozenset[LeaseNumber]:
        """Carries out transitions; answers the numbers that matched. `gone` erases the password and frees the ask key.

        A tombstone moves to `revoking` only by a move that has facts and expects `gone` alone; it then counts as live again.
        """
        ...

    async def step(self, step: Step) -> frozenset[LeaseNumber]:
        """As `move`, for many leases at once; answers the numbers that matched. Password and ask key are erased."""
        ...

    async def lease(self, number: LeaseNumber) -> Lease | None:
        """One lease, a tombstone (`gone`) too; None when it was never written or has been tidied."""
        ...

    async def leases(self, numbers: Collection[LeaseNumber]) -> Sequence[Lease]:
        """Those of the leases that there are, tombstones too, by number."""
        ...

    async def asked(self, ask_key: bytes) -> Lease | None:
        """The live (`reserved` or `active`) lease with this ask key."""
        ...

    async def free_ask(self, ask_key: bytes) -> None:
        """Lets the key be used for a new lease; the lease that had it lives on without."""
        ...

    async def prepared(self, path: str, limit: int, *, after: LeaseNumber) -> Sequence[Lease]:
        """`prepared` users of a path (that is, of a role) in number order, beyond `after`."""
        ...

    async def pool_size(self, path: str) -> int:
        """How many users of a path are `preparing` or `prepared`."""
        ...

    async def settle(self, numbers: Collection[LeaseNumber]) -> None:
        """Notes that the logins of handed-out leases are durable in their database; `hand_out` leaves them unsettled."""
        ...

    async def unsettled(
        self, limit: int, *, connection: ConnectionNumber | None = None, after: LeaseNumber | None = None
    ) -> Sequence[Lease]:
        """Active leases that were handed out and not settled yet, by number; of one connection, or of all."""
        ...

    async def claim_due(
        self,
        states: Collection[LeaseState],
        *,
        limit: int,
        hold_ms: int,
        connection: ConnectionNumber | None = None,
        not_connections: Collection[ConnectionNumber] = (),
    ) -> Sequence[Lease]:
        """Takes up to `limit` leases whose due time has come, oldest due first: epoch raised, due pushed on by `hold_ms`.

        They come back with their new epoch and with the due time that had come, the first one where they were put off since.
        """
        ...

    async def next_due_ms(
        self, states: Collection[LeaseState], *, not_connections: Collection[ConnectionNumber] = ()
    ) -> int | None:
        """The earliest due time among leases in `states`, of all connections but these."""
        ...

    async def due_count(self, states: Collection[LeaseState], *, within_ms: int, at_most: int) -> int:
        """How many leases in `states` fall due within `within_ms` from now, counted no further than `at_most`."""
        ...

    async def backlog(self, *, at_most: int) -> Backlog:
        """What waits to be revoked, or is being revoked, counted no further than `at_most`. Intents count from when they are due.

        A claim, a retry or a delay moves the due time of a lease, but not since when it counts as waiting; a renewal ends that.
        """
        ...

    async def hasten(self, states: Collection[LeaseState], *, connection: ConnectionNumber) -> int:
        """Makes all leases of a connection in `states` due now; answers how many."""
        ...

    async def end_under(self, prefix: str) -> Sequence[LeaseNumber]:
        """Moves every lease, `active` or in its `grace`, whose path equals `prefix` or lies under it to `revoking`, due now; answers which.

        `prefix` has no trailing slash; the empty one means all.
        """
        ...

    async def end_at(self, connection: ConnectionNumber) -> int:
        """Moves every lease of a connection, `active` or in its `grace`, to `revoking`, due now; answers how many."""
        ...

    async def list_pools(self) -> Sequence[str]:
        """The distinct paths that have `preparing` or `prepared` users."""
        ...

    async def list_paths(self) -> Sequence[str]:
        """The distinct paths that live leases (reserved to stuck, pool users left out) have."""
        ...

    async def crowded_paths(self, least: int) -> Mapping[str, int]:
        """The paths with at least so many live leases (reserved to stuck), and how many; from the counts that limits rest on."""
        ...

    async def live_size(self, path: str) -> int:
        """How many live leases (reserved to stuck) exactly this path has."""
        ...

    async def last_end_ms(self, path: str) -> int | None:
        """When the last of the active leases of exactly this path ends, as they stand now; read in pages."""
        ...

    async def last_end_at_ms(self, connection: ConnectionNumber) -> int | None:
        """When the last of the active leases of a connection ends."""
        ...

    async def list_leases(self, path: str, *, after: LeaseNumber, limit: int) -> Sequence[LeaseNumber]:
        """Numbers of live leases of exactly this path, in order."""
        ...

    async def leases_in(self, states: Collection[LeaseState], *, after: LeaseNumber, limit: int) -> Sequence[Lease]:
        """Leases in `states` by number, for recovery, reconciling and lists of stuck ones."""
        ...

    async def leases_at(
        self, connection: ConnectionNumber, state: LeaseState, *, beyond: Lease | None, limit: int
    ) -> Sequence[Lease]:
        """Leases of a connection in one state, by due time and number, beyond the lease where the last page ended (None: from the first).

        One whose due time moves meanwhile may come twice, or, where it moved back, not at all.
        """
        ...

    async def tally(
        self, connection: ConnectionNumber | None = None, *, states: Collection[LeaseState] = tuple(LeaseState)
    ) -> Tally:
        """Counts by state, of one connection or of all; of states that are not asked for no lease is looked at."""
        ...

    async def highest_number(self) -> int:
        """The greatest number of any lease, token or document ever written; 0 for a new store."""
        ...

    async def tidy(self, limit: int) -> int:
        """Deletes tombstones whose due time has come; answers how many."""
        ...

    # tokens ---------------------------------------------------------------------------------------------------------

    async def add_token(self, token: Token, *, ttl_s: int | None) -> bool:
        """Writes a token that ends `ttl_s` from now (None: never), or with its parent (if any) where that ends before.

        False when its parent has ended meanwhile.
        """
        ...

    async def token(self, number: TokenNumber) -> Token | None:
        """A token that has not ended."""
        ...

    async def head_of_token(self, number: TokenNumber, *, generations: int) -> Token | None:
        """The token without a parent from which this one descends: itself, or one that is at most so many generations up.

        None when it has ended, or there is none so near.
        """
        ...

    async def tokens(self, *, after: TokenNumber, limit: int) -> Sequence[Token]:
        """Tokens that have not ended, by number."""
        ...

    async def crowded_tokens(self, least: int, *, after: TokenNumber, limit: int) -> CrowdedTokens:
        """Of the next `limit` tokens, those with at least so many live leases. The whole is read in pages: tokens may be many."""
        ...

    async def renew_token(self, number: TokenNumber, *, ttl_s: int, facts: TokenFacts) -> TokenRenewal | None:
        """Moves its end to `ttl_s` from now, or to its parent's where that is sooner. None when it has ended.

        Whatever would outlive it ends with it from the same commit on: its descendants, and its leases and theirs.
        """
        ...

    async def use_token(self, number: TokenNumber) -> int | None:
        """Takes one use of a use-limited token; answers how many are left, None when there was none."""
        ...

    async def end_tokens(self, numbers: Collection[TokenNumber], *, children: TokenEnd) -> Sequence[TokenNumber]:
        """Ends tokens, and their children or not.

        Every lease of an ended token, `active` or in its `grace`, becomes `revoking`, due now, in that commit.
        """
        ...

    async def end_expired_tokens(self, limit: int) -> Sequence[TokenNumber]:
        """Ends tokens whose time has come, and their children; their active leases stay so and are due at the latest now.

        Those in their `grace` are left alone: their time was over before.
        """
        ...

    # documents ------------------------------------------------------------------------------------------------------

    async def put_document(self, kind: str, name: str, body: bytes) -> Document:
        """Writes a document under its name, made or updated."""
        ...

    async def delete_document(self, kind: str, name: str) -> Document | None:
        """Marks a document deleted; its body stays readable by number until `purge_document`."""
        ...

    async def change_documents(self, changes: Sequence[DocumentChange]) -> Sequence[Document]:
        """Carries out changes in their order, all of them in one commit; answers the documents as each change left them.

        A deletion of what is not there changes nothing and answers nothing.
        """
        ...

    async def purge_document(self, kind: str, number: int) -> None:
        """Erases a deleted document."""
        ...

    async def changes_since(self, revision: int) -> Sequence[Document]:
        """Documents written or deleted after `revision`, oldest change first; 0 gives all. The truth for every cache."""
        ...

    # audit ----------------------------------------------------------------------------------------------------------

    def confirm_audit(self, head: AuditHead) -> None:
        """Remembers the newest durable audit entry; it is written with the next commit, at the latest by `close`."""
        ...

    async def audit_head(self) -> AuditHead | None:
        """The newest confirmed head that the store holds."""
        ...
