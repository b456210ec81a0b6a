"""The embedded store: `Store` over one SQLite file.

    directory/  store.lock  store.db  store.db-wal  store.db-shm      (files.py; tables: migrations/0001_initial.sql)

Writes go to one thread that commits them in groups (writer.py). Point reads happen on the event loop, lists in a second
thread (reader.py). What the methods promise is said in `broker.store.protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from broker.clock import Clock
from broker.model import (
    ConnectionNumber,
    Document,
    Lease,
    LeaseNumber,
    LeaseState,
    Token,
    TokenFacts,
    TokenNumber,
)
from broker.seal.keyring import Keyring
from broker.store.sqlite import documents, due, intents, lists, tokens, transitions
from broker.store.sqlite.cipher import LeaseRow, TokenRow
from broker.store.sqlite.due import Which
from broker.store.sqlite.files import OpenFiles
from broker.store.sqlite.opening import Opened, open_directory
from broker.store.sqlite.queries import SQL
from broker.store.sqlite.reader import Reader
from broker.store.sqlite.writer import Writer
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

_ROWS_PER_COMMIT = 500
"""Changes without a known number of rows are made in commits of so many, that others' writes go between."""

_ROWS_PER_SCAN = 5_000
"""Reads of a known path that look at each row go by so many, so that others' reads go between."""


class SqliteStore:
    """Meets `Store`. Made by `open`; belongs to the event loop that opened it."""

    def __init__(self, opened: Opened, clock: Clock) -> None:
        self._lock = opened.lock
        self._clock = clock
        self._vitals = opened.vitals
        self._cipher = opened.vitals.cipher
        self._reader = Reader(opened.path)
        self._writer = Writer(opened.db, OpenFiles(opened.path), clock, opened.vitals)

    @classmethod
    async def open(cls, directory: Path, master_key: bytes, clock: Clock) -> SqliteStore:
        """Opens the store in `directory`, made with new keys if there is none, and raises `clock` to its high-water time.

        Raises what `broker.store.sqlite.opening.open_directory` does.
        """
        return cls(await asyncio.to_thread(open_directory, directory, master_key, clock), clock)

    @property
    def keyring(self) -> Keyring:
        """The keys of this store, made when it was."""
        return self._vitals.keyring

    @property
    def broker_id(self) -> str:
        """8 letters and digits that name this store's broker, made when it was."""
        return self._vitals.broker_id

    def now_ms(self) -> int:
        """See `Store.now_ms`."""
        return self._clock.now_ms()

    async def barrier(self) -> None:
        """See `Store.barrier`. The audit head confirmed before is durable on return too."""
        await self._writer.do(_nothing)

    async def close(self) -> None:
        """See `Store.close`. A second call does nothing."""
        await self._reader.close()
        await self._writer.close()
        self._lock.release()

    # leases ---------------------------------------------------------------------------------------------------------

    async def reserve(self, reservations: Sequence[Reservation]) -> Sequence[Refusal | None]:
        """See `Store.reserve`."""
        return await self._writer.do(intents.reserve, self._cipher, reservations)

    async def prepare(self, reservations: Sequence[Reservation]) -> None:
        """See `Store.prepare`."""
        await self._writer.do(intents.prepare, self._cipher, reservations)

    async def hand_out(self, handouts: Sequence[Handout]) -> Sequence[Refusal | None]:
        """See `Store.hand_out`."""
        return await self._writer.do(intents.hand_out, self._cipher, handouts)

    async def move(self, moves: Sequence[Move]) -> frozenset[LeaseNumber]:
        """See `Store.move`."""
        return await self._writer.do(transitions.move, self._cipher, moves)

    async def step(self, step: Step) -> frozenset[LeaseNumber]:
        """See `Store.step`."""
        return await self._writer.do(transitions.step, step)

    async def lease(self, number: LeaseNumber) -> Lease | None:
        """See `Store.lease`."""
        row = self._reader.row(SQL["lease"], {"number": number})
        return None if row is None else self._cipher.open_lease(LeaseRow(*row))

    async def leases(self, numbers: Collection[LeaseNumber]) -> Sequence[Lease]:
        """See `Store.leases`."""
        return await self._reader.scan(lists.leases, self._cipher, numbers)

    async def asked(self, ask_key: bytes) -> Lease | None:
        """See `Store.asked`."""
        row = self._reader.row(SQL["asked"], {"ask": ask_key})
        return None if row is None else self._cipher.open_lease(LeaseRow(*row))

    async def free_ask(self, ask_key: bytes) -> None:
        """See `Store.free_ask`."""
        await self._writer.do(transitions.free_ask, ask_key)

    async def prepared(self, path: str, limit: int, *, after: LeaseNumber) -> Sequence[Lease]:
        """See `Store.prepared`."""
        return await self._reader.scan(lists.prepared, self._cipher, path, limit, after=after)

    async def pool_size(self, path: str) -> int:
        """See `Store.pool_size`."""
        return await self._reader.scan(lists.pool_size, self._cipher.family(path))

    async def settle(self, numbers: Collection[LeaseNumber]) -> None:
        """See `Store.settle`."""
        await self._writer.do(transitions.settle, numbers)

    async def unsettled(
        self, limit: int, *, connection: ConnectionNumber | None = None, after: LeaseNumber | None = None
    ) -> Sequence[Lease]:
        """See `Store.unsettled`."""
        return await self._reader.scan(lists.unsettled, self._cipher, limit, connection=connection, after=after)

    async def claim_due(
        self,
        states: Collection[LeaseState],
        *,
        limit: int,
        hold_ms: int,
        connection: ConnectionNumber | None = None,
        not_connections: Collection[ConnectionNumber] = (),
    ) -> Sequence[Lease]:
        """See `Store.claim_due`."""
        which = Which(states, connection, not_connections)
        return await self._writer.do(due.claim_due, self._cipher, which, limit=limit, hold_ms=hold_ms)

    async def next_due_ms(
        self, states: Collection[LeaseState], *, not_connections: Collection[ConnectionNumber] = ()
    ) -> int | None:
        """See `Store.next_due_ms`."""
        return await self._reader.scan(due.next_due_ms, Which(states, not_connections=not_connections))

    async def due_count(self, states: Collection[LeaseState], *, within_ms: int, at_most: int) -> int:
        """See `Store.due_count`."""
        return await self._reader.scan(due.due_count, Which(states), until_ms=self.now_ms() + within_ms, at_most=at_most)

    async def backlog(self, *, at_most: int) -> Backlog:
        """See `Store.backlog`."""
        return await self._reader.scan(due.backlog, self.now_ms(), at_most=at_most)

    async def hasten(self, states: Collection[LeaseState], *, connection: ConnectionNumber) -> int:
        """See `Store.hasten`. Done in several commits where there are many."""
        total = 0
        while changed := await self._writer.do(due.hasten, Which(states, connection), limit=_ROWS_PER_COMMIT):
            total += changed
        return total

    async def end_under(self, prefix: str) -> Sequence[LeaseNumber]:
        """See `Store.end_under`. Done in several commits where there are many."""
        paths = await self.list_paths()
        ended: list[LeaseNumber] = []
        for path in paths:
            if not prefix or path == prefix or path.startswith(f"{prefix}/"):
                ended += await self._end_path(path)
        return ended

    async def end_at(self, connection: ConnectionNumber) -> int:
        """See `Store.end_at`. Done in several commits where there are many."""
        total = 0
        while ended := await self._writer.do(due.end_connection, connection, limit=_ROWS_PER_COMMIT):
            total += ended
        return total

    async def list_pools(self) -> Sequence[str]:
        """See `Store.list_pools`."""
        return await self._reader.scan(lists.pool_paths, self._cipher)

    async def list_paths(self) -> Sequence[str]:
        """See `Store.list_paths`."""
        return await self._reader.scan(lists.live_paths, self._cipher)

    async def crowded_paths(self, least: int) -> Mapping[str, int]:
        """See `Store.crowded_paths`."""
        return await self._reader.scan(lists.crowded_paths, self._cipher, least)

    async def live_size(self, path: str) -> int:
        """See `Store.live_size`."""
        row = self._reader.row(SQL["live_of_family"], {"family": self._cipher.family(path)})
        return 0 if row is None else int(row[0])

    async def last_end_ms(self, path: str) -> int | None:
        """See `Store.last_end_ms`."""
        family, ends = self._cipher.family(path), list[int]()
        latest, last = await self._reader.scan(lists.last_end_ms, family, after=0, limit=_ROWS_PER_SCAN)
        while last is not None:
            ends += [] if latest is None else [latest]
            latest, last = await self._reader.scan(lists.last_end_ms, family, after=last, limit=_ROWS_PER_SCAN)
        return max(ends, default=None)

    async def last_end_at_ms(self, connection: ConnectionNumber) -> int | None:
        """See `Store.last_end_at_ms`."""
        return await self._reader.scan(lists.last_end_at_ms, connection)

    async def list_leases(self, path: str, *, after: LeaseNumber, limit: int) -> Sequence[LeaseNumber]:
        """See `Store.list_leases`."""
        return await self._reader.scan(lists.numbers_of_path, self._cipher.family(path), after=after, limit=limit)

    async def leases_in(self, states: Collection[LeaseState], *, after: LeaseNumber, limit: int) -> Sequence[Lease]:
        """See `Store.leases_in`."""
        return await self._reader.scan(lists.leases_in, self._cipher, states, after=after, limit=limit)

    async def leases_at(
        self, connection: ConnectionNumber, state: LeaseState, *, beyond: Lease | None, limit: int
    ) -> Sequence[Lease]:
        """See `Store.leases_at`."""
        return await self._reader.scan(lists.leases_at, self._cipher, connection, state, beyond=beyond, limit=limit)

    async def tally(
        self, connection: ConnectionNumber | None = None, *, states: Collection[LeaseState] = tuple(LeaseState)
    ) -> Tally:
        """See `Store.tally`."""
        return await self._reader.scan(lists.tally, Which(states, connection))

    async def highest_number(self) -> int:
        """See `Store.highest_number`."""
        row = self._reader.row(SQL["highest"], {})
        return 0 if row is None else int(row[0])

    async def tidy(self, limit: int) -> int:
        """See `Store.tidy`."""
        return await self._writer.do(due.tidy, limit)

    # tokens ---------------------------------------------------------------------------------------------------------

    async def add_token(self, token: Token, *, ttl_s: int | None) -> bool:
        """See `Store.add_token`."""
        return await self._writer.do(tokens.add_token, self._cipher, token, ttl_s)

    async def token(self, number: TokenNumber) -> Token | None:
        """See `Store.token`."""
        row = self._reader.row(SQL["token"], {"number": number, "now": self.now_ms()})
        return None if row is None else self._cipher.open_token(TokenRow(*row))

    async def head_of_token(self, number: TokenNumber, *, generations: int) -> Token | None:
        """See `Store.head_of_token`."""
        values = {"number": number, "generations": generations, "now": self.now_ms()}
        row = self._reader.row(SQL["head_of_token"], values)
        return None if row is None else self._cipher.open_token(TokenRow(*row))

    async def tokens(self, *, after: TokenNumber, limit: int) -> Sequence[Token]:
        """See `Store.tokens`."""
        return await self._reader.scan(tokens.list_tokens, self.now_ms(), self._cipher, after=after, limit=limit)

    async def crowded_tokens(self, least: int, *, after: TokenNumber, limit: int) -> CrowdedTokens:
        """See `Store.crowded_tokens`."""
        return await self._reader.scan(lists.crowded_tokens, least, after=after, limit=limit)

    async def renew_token(self, number: TokenNumber, *, ttl_s: int, facts: TokenFacts) -> TokenRenewal | None:
        """See `Store.renew_token`."""
        return await self._writer.do(tokens.renew_token, self._cipher, number, ttl_s=ttl_s, facts=facts)

    async def use_token(self, number: TokenNumber) -> int | None:
        """See `Store.use_token`."""
        return await self._writer.do(tokens.use_token, number)

    async def end_tokens(self, numbers: Collection[TokenNumber], *, children: TokenEnd) -> Sequence[TokenNumber]:
        """See `Store.end_tokens`."""
        return await self._writer.do(tokens.end_tokens, self._cipher, numbers, children=children)

    async def end_expired_tokens(self, limit: int) -> Sequence[TokenNumber]:
        """See `Store.end_expired_tokens`."""
        return await self._writer.do(tokens.end_expired_tokens, limit)

    # documents ------------------------------------------------------------------------------------------------------

    async def put_document(self, kind: str, name: str, body: bytes) -> Document:
        """See `Store.put_document`."""
        return await self._writer.do(documents.put_document, self._cipher, kind, name, body)

    async def delete_document(self, kind: str, name: str) -> Document | None:
        """See `Store.delete_document`."""
        return await self._writer.do(documents.delete_document, self._cipher, kind, name)

    async def change_documents(self, changes: Sequence[DocumentChange]) -> Sequence[Document]:
        """See `Store.change_documents`."""
        return await self._writer.do(documents.change_documents, self._cipher, changes)

    async def purge_document(self, kind: str, number: int) -> None:
        """See `Store.purge_document`."""
        await self._writer.do(documents.purge_document, self._cipher, kind, number)

    async def changes_since(self, revision: int) -> Sequence[Document]:
        """See `Store.changes_since`."""
        return await self._reader.scan(documents.changes_since, self._cipher, revision)

    # audit ----------------------------------------------------------------------------------------------------------

    def confirm_audit(self, head: AuditHead) -> None:
        """See `Store.confirm_audit`. `barrier` writes it at once."""
        self._vitals.confirm(head)

    async def audit_head(self) -> AuditHead | None:
        """See `Store.audit_head`."""
        return self._vitals.head

    async def _end_path(self, path: str) -> Sequence[LeaseNumber]:
        family, ended = self._cipher.family(path), [LeaseNumber(0)]
        while some := await self._writer.do(transitions.end_family, family, after=ended[-1], limit=_ROWS_PER_COMMIT):
            ended += some
        return ended[1:]


def _nothing(_db: object, _now_ms: int) -> None:
    """An operation that only has its place in the order of writes."""
