"""Drain: a role or connection is deleted and its leases end with it, in the background, whatever happens meanwhile.

An order to drain is a document, written in the commit of the deletion. It stands until no issue that began before can come to
its end any longer: such a lease is ended as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass

import orjson
import structlog

from broker.catalog import roles
from broker.leases import lifecycle
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import ConnectionNumber, Document, LeaseNumber, LeaseState
from broker.store.words import DocumentChange, Move

KIND = "drain"
_PAGE = 500
_GRACE_MS = 5_000
_AGAIN_MS = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Leases to end: of a path or of a connection; after `until_ms` no others come.

    Of a path those that the deleted role gave: with numbers below `before`, or of its `revision` or an earlier one. An issue that
    began before the deletion may take its number after it.
    """

    path: str = ""
    before: int = 0
    revision: int = 0
    connection: int = 0
    until_ms: int

    def written(self) -> DocumentChange:
        """The order as a document. A later one of the same role takes its place."""
        return DocumentChange(KIND, self.path or f"connection/{self.connection}", orjson.dumps(asdict(self)))


@dataclass(slots=True)
class _Standing:
    """An order that is being carried out: when next, and how long after that again."""

    order: Order
    next_ms: int = 0
    again_ms: int = _AGAIN_MS


class Drainer:
    """Deletes with draining, and carries the orders out."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._standing: dict[str, _Standing] = {}

    async def take_over(self) -> None:
        """At start: takes up the orders of an earlier process."""
        for document in await self._parts.store.changes_since(0):
            if document.kind == KIND and document.deleted:
                await self._parts.store.purge_document(KIND, document.number)
            elif document.kind == KIND:
                self._standing[document.name] = _Standing(_order(document))

    async def delete_role(self, name: str) -> None:
        """Deletes a role, if there is one, and orders the end of its leases; durable on return. Goes on when the caller leaves.

        Those of a role that is made anew under the same name are not meant.
        """
        path = roles.lease_path(name)
        order = Order(
            path=path, before=self._parts.numbers.next(), revision=self._last_revision(name, path), until_ms=self._until_ms()
        )
        await asyncio.shield(self._ordered(self._parts.catalog.delete_role(name, [order.written()]), [order]))

    async def delete_connection(self, name: str) -> None:
        """Deletes a connection, if there is one, and orders the end of its leases; durable on return. Goes on when the caller leaves.

        Those that are left of former connections of that name, deleted or moved, are meant too.
        """
        orders = [Order(connection=number, until_ms=self._until_ms()) for number in self._parts.catalog.numbers_of(name)]
        deletion = self._parts.catalog.delete_connection(name, [order.written() for order in orders])
        await asyncio.shield(self._ordered(deletion, orders))

    async def run(self) -> None:
        """Carries out what it is time for. Raises `StoreUnavailable`; what was not done then is done the next time."""
        for name, standing in list(self._standing.items()):
            now = self._parts.store.now_ms()
            if now < standing.next_ms:
                continue
            await self._end(standing.order)
            if now < standing.order.until_ms:
                # What may still come is rare, and looking for it costs more the more there was.
                standing.next_ms = min(standing.order.until_ms, now + standing.again_ms)
                standing.again_ms *= 2
            elif self._standing.get(name) is standing:
                await self._forget(name)

    async def _ordered(self, deletion: Coroutine[object, object, None], orders: Sequence[Order]) -> None:
        await deletion
        for order in orders:
            self._standing[order.written().name] = _Standing(order)

    async def _end(self, order: Order) -> None:
        ended = await (self._end_path(order) if order.path else self._parts.store.end_at(ConnectionNumber(order.connection)))
        if ended:
            self._parts.wake_expiry()
            log.info("leases of what was deleted are being ended", leases=ended, drained=order.written().name)

    async def _end_path(self, order: Order) -> int:
        """Only those from before the order, which `end_under` can't tell."""
        ended, after = 0, LeaseNumber(0)
        while page := await self._parts.store.list_leases(order.path, after=after, limit=_PAGE):
            after = page[-1]
            early = [number for number in page if number < order.before]
            others = await self._parts.store.leases(page[len(early) :]) if len(early) < len(page) else ()
            late = [lease.number for lease in others if lease.facts.role_revision <= order.revision]
            ended += len(await self._parts.store.move([_ending(number) for number in (*early, *late)]))
        return ended

    async def _forget(self, name: str) -> None:
        document = await self._parts.store.delete_document(KIND, name)
        if document is not None:
            await self._parts.store.purge_document(KIND, document.number)
        del self._standing[name]

    def _last_revision(self, name: str, path: str) -> int:
        """Of the role, or of the one that an order which stands already is about."""
        role, standing = self._parts.catalog.role(name), self._standing.get(path)
        return max(0 if role is None else role.revision, 0 if standing is None else standing.order.revision)

    def _until_ms(self) -> int:
        return self._parts.store.now_ms() + int(self._parts.settings.issue_timeout_s * 1_000) + _GRACE_MS


def _order(document: Document) -> Order:
    return Order(**orjson.loads(document.body))


def _ending(number: LeaseNumber) -> Move:
    return Move(number=number, expect=(LeaseState.ACTIVE, LeaseState.GRACE), to=lifecycle.target(Event.ENDED), due_in_ms=0)
