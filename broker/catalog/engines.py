"""The open engine of each connection: opened when first needed, kept, replaced when the connection changes.

A number of a connection stands for one cluster as long as it lives: a lease has no more than that number to say where its user is.
So an engine that finds itself at another cluster is closed again and serves nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from broker.catalog.connections import Connection, refusal, same_address
from broker.engines.guard import Guard
from broker.errors import DatabaseUnavailable, EngineError
from broker.model import ConnectionNumber

_ELSEWHERE_AGAIN_S = 30

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Slot:
    engine: Guard
    connection: Connection
    opened: bool = False
    cluster: str = ""
    """What it found when it was opened."""
    refused: str = ""
    """What the log has of why the server is not worked with."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while connecting, so that many waiting requests connect once."""


class OpenEngines:
    """Engines by connection number. `build` makes one that touches nothing yet, already guarded."""

    def __init__(self, build: Callable[[Connection], Guard]) -> None:
        self._build = build
        self._slots: dict[ConnectionNumber, _Slot] = {}
        self._replaced: list[Guard] = []
        """Engines that calls in flight may still use, replaced since the last `close_replaced`."""
        self._leaving: list[Guard] = []
        """Those that were replaced before it, and are closed by the next one."""

    def build(self, connection: Connection) -> Guard:
        """A new engine for the connection, not opened and not kept. Raises `InvalidRequest`, `EngineMissing`."""
        return self._build(connection)

    def peek(self, connection: Connection) -> Guard:
        """The engine of the connection, perhaps not connected: for verbs that touch no database."""
        return self._slot(connection).engine

    async def get(self, connection: Connection) -> Guard:
        """The engine, connected at least once, to the connection's own cluster and to no superseded server of it.

        Raises `DatabaseUnavailable`, `EngineMissing`.
        """
        slot = self._slot(connection)
        while not slot.opened:
            async with slot.lock:
                if not slot.opened:
                    await self._open(slot, connection)
            if not self._current(slot):
                # It was replaced while it connected, and `_open` has closed it again.
                slot = self._slot(connection)
        return slot.engine

    def opened(self, number: ConnectionNumber) -> bool:
        """Whether there is an engine of the connection that has been connected."""
        slot = self._slots.get(number)
        return slot is not None and slot.opened

    def cluster(self, number: ConnectionNumber) -> str:
        """The cluster that the connection's engine found; empty when it has not been connected, or can't tell."""
        slot = self._slots.get(number)
        return "" if slot is None else slot.cluster

    def put(self, connection: Connection, engine: Guard, *, opened: bool) -> None:
        """Keeps `engine` for the connection; the one that it replaces serves calls in flight until `close_replaced`."""
        self._replace(connection, _Slot(engine, connection, opened=opened, cluster=connection.cluster if opened else ""))

    async def close_replaced(self) -> None:
        """Closes what was replaced before the last time this was called: called once a minute, every call has ended since."""
        leaving, self._leaving, self._replaced = self._leaving, self._replaced, []
        await asyncio.gather(*(engine.close() for engine in leaving))

    async def close(self, number: ConnectionNumber) -> None:
        """Closes and forgets the engine of a connection, if there is one; the next `get` opens a new one."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            await slot.engine.close()

    async def close_all(self) -> None:
        """Closes every engine."""
        engines = [*(slot.engine for slot in self._slots.values()), *self._replaced, *self._leaving]
        self._slots, self._replaced, self._leaving = {}, [], []
        await asyncio.gather(*(engine.close() for engine in engines))

    async def _open(self, slot: _Slot, connection: Connection) -> None:
        """Connects the slot's engine, and closes it again where nobody wants it any longer, or it leads elsewhere."""
        try:
            health = await slot.engine.open()
        except EngineError:
            if self._slots.get(connection.number) in (slot, None):
                raise
            return
        if not self._current(slot):
            await slot.engine.close()
            if connection.number not in self._slots:
                raise DatabaseUnavailable(f"connection {connection.name} was closed while it was being opened")
            return
        expected = connection.cluster or slot.connection.cluster
        if expected and health.cluster != expected:
            await slot.engine.close()
            log.error(
                "connection leads to another cluster", connection=connection.name, expected=expected, found=health.cluster
            )
            raise DatabaseUnavailable(
                f"connection {connection.name} leads to another database cluster than the one that has the users of its leases; "
                f"where that is meant, write the connection again with verify_connection=true: the former one is then kept for them",
                retry_after_s=_ELSEWHERE_AGAIN_S,
            )
        if refused := refusal(connection, health):
            await slot.engine.close()
            if slot.refused != refused:
                slot.refused = refused
                log.error(
                    "server refused",
                    connection=connection.name,
                    known=connection.timeline,
                    found=health.timeline,
                    reason=refused,
                )
            raise DatabaseUnavailable(f"connection {connection.name}: {refused}", retry_after_s=_ELSEWHERE_AGAIN_S)
        slot.cluster, slot.opened = health.cluster, True

    def _current(self, slot: _Slot) -> bool:
        return self._slots.get(slot.connection.number) is slot

    def _slot(self, connection: Connection) -> _Slot:
        slot = self._slots.get(connection.number)
        if slot is None or (connection.revision > slot.connection.revision and not same_address(slot.connection, connection)):
            slot = _Slot(self._build(connection), connection)
            self._replace(connection, slot)
        return slot

    def _replace(self, connection: Connection, slot: _Slot) -> None:
        old = self._slots.get(connection.number)
        self._slots[connection.number] = slot
        if old is not None:
            self._replaced.append(old.engine)
