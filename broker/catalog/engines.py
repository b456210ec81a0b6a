"""The open engine of each connection: opened when first needed, kept, replaced when the connection changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.catalog.connections import Connection
from broker.engines.guard import Guard
from broker.model import ConnectionNumber


@dataclass(slots=True)
class _Slot:
    engine: Guard
    revision: int
    opened: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while connecting, so that many waiting requests connect once."""


class OpenEngines:
    """Engines by connection number. `build` makes one that touches nothing yet, already guarded."""

    def __init__(self, build: Callable[[Connection], Guard]) -> None:
        self._build = build
        self._slots: dict[ConnectionNumber, _Slot] = {}

    def build(self, connection: Connection) -> Guard:
        """A new engine for the connection, not opened and not kept. Raises `InvalidRequest`, `EngineMissing`."""
        return self._build(connection)

    def peek(self, connection: Connection) -> Guard:
        """The engine of the connection, perhaps not connected: for verbs that touch no database."""
        return self._slot(connection).engine

    async def get(self, connection: Connection) -> Guard:
        """The engine, connected at least once. Raises `DatabaseUnavailable`, `EngineMissing`."""
        slot = self._slot(connection)
        if not slot.opened:
            async with slot.lock:
                if not slot.opened:
                    await slot.engine.open()
                    slot.opened = True
        return slot.engine

    def opened(self, number: ConnectionNumber) -> bool:
        """Whether there is an engine of the connection that has been connected."""
        slot = self._slots.get(number)
        return slot is not None and slot.opened

    async def put(self, connection: Connection, engine: Guard, *, opened: bool) -> None:
        """Keeps `engine` for the connection, and closes the one that it replaces."""
        old = self._slots.get(connection.number)
        self._slots[connection.number] = _Slot(engine, connection.revision, opened=opened)
        if old is not None:
            await old.engine.close()

    async def close(self, number: ConnectionNumber) -> None:
        """Closes and forgets the engine of a connection, if there is one; the next `get` opens a new one."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            await slot.engine.close()

    async def close_all(self) -> None:
        """Closes every engine."""
        slots, self._slots = list(self._slots.values()), {}
        await asyncio.gather(*(slot.engine.close() for slot in slots))

    def _slot(self, connection: Connection) -> _Slot:
        slot = self._slots.get(connection.number)
        if slot is None:
            slot = self._slots[connection.number] = _Slot(self._build(connection), connection.revision)
        return slot
