"""Sweep: sessions of users that no longer exist are ended, wherever they come from.

A revocation sees to it that none is left. This finds what slips past it all the same: a login that a database let in and showed only when
its user was gone, a session that a failover or a hand at the database let live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from broker.audit.entry import NOBODY, AuditResponse
from broker.catalog.connections import Connection
from broker.engines.protocol import Swept
from broker.errors import AuditUnavailable, BrokerError, EngineError, Unavailable, UserRemains
from broker.leases import records
from broker.leases.parts import Parts
from broker.model import ConnectionNumber

_AT_ONCE = 8
"""So that a start with many connections does not open them all in the same moment."""
_UNRECORDED_MOST = 1_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sweeper:
    """Sweeps each connection at the start and every `leases.sweep` from then on, each for itself: a dead database delays no other."""

    parts: Parts
    _due_ms: dict[ConnectionNumber, int] = field(default_factory=dict)
    _running: dict[ConnectionNumber, asyncio.Task[Sequence[Swept]]] = field(default_factory=dict)
    _told: dict[ConnectionNumber, frozenset[str]] = field(default_factory=dict)
    """What was wrong at the last sweep of a connection: said once, not every time."""
    _unrecorded: list[bytes] = field(default_factory=list)
    """Audit entries of what was ended while the log could not be written."""
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def run(self) -> int:
        """Starts the sweeps that are due; answers in how many milliseconds to look again."""
        now, every_ms = self.parts.store.now_ms(), self.parts.settings.sweep * 1_000
        connections = self.parts.catalog.connections()
        for gone in self._due_ms.keys() - {connection.number for connection in connections}:
            del self._due_ms[gone]
            self._told.pop(gone, None)
        for connection in connections:
            if connection.number not in self._running and self._due_ms.get(connection.number, 0) <= now:
                self._due_ms[connection.number] = now + every_ms
                self._start(connection)
        return every_ms

    async def sweep(self, connection: Connection) -> Sequence[Swept]:
        """Sweeps one connection now, or as soon as a sweep of it has ended that may have looked too early; answers what came of it."""
        while (running := self._running.get(connection.number)) is not None:
            await asyncio.wait([running])
        return await self._start(connection)

    async def stop(self) -> None:
        """Ends the sweeps where they are."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, connection: Connection) -> asyncio.Task[Sequence[Swept]]:
        task = asyncio.get_running_loop().create_task(self._sweep(connection))
        self._running[connection.number] = task
        task.add_done_callback(lambda _: self._running.pop(connection.number))
        return task

    async def _sweep(self, connection: Connection) -> Sequence[Swept]:
        async with self._places:
            try:
                engine = await self.parts.catalog.engine_for(connection)
                swept = await engine.sweep()
            except BrokerError as error:
                swept = [Swept(error=error if isinstance(error, EngineError) else EngineError(str(error)))]
        self._tell(connection, [(each.error, each) for each in swept if each.error is not None])
        await self._record(connection, [each for each in swept if each.error is None])
        return swept

    def _tell(self, connection: Connection, failed: Sequence[tuple[EngineError, Swept]]) -> None:
        """Logs what is wrong now and was not the last time."""
        before, now = self._told.get(connection.number, frozenset()), set()
        for error, about in failed:
            # How long a database will be left alone differs each time, and is no news.
            what = type(error).__name__ if isinstance(error, Unavailable) else str(error)
            said = f"{about.place} {about.identity} {what}"
            now.add(said)
            if said not in before:
                remedy = error.remedy if isinstance(error, UserRemains) else ()
                log.warning(
                    "sweep is not complete", connection=connection.name, error=str(error), remedy=remedy, **_where(about)
                )
        self._told[connection.number] = frozenset(now)

    async def _record(self, connection: Connection, ended: Sequence[Swept]) -> None:
        parts = self.parts
        for each in ended:
            log.warning(
                "ended sessions of a user that is no more", connection=connection.name, sessions=each.sessions, **_where(each)
            )
            parts.metrics.swept_sessions.labels(connection.name).inc(each.sessions)
        if ended:
            now, data = parts.store.now_ms(), {"connection": connection.name}
            request = records.new_request("sweep", f"{records.MOUNT.point}sessions", data)
            asked = parts.scribe.asked(NOBODY, request)
            answers = [AuditResponse(mount=records.MOUNT, data={"sessions": each.sessions, **_where(each)}) for each in ended]
            entries = [parts.scribe.request(now, asked), *(parts.scribe.response(now, asked, answer) for answer in answers)]
            self._unrecorded = [*self._unrecorded, *entries][-_UNRECORDED_MOST:]
        entries, self._unrecorded = self._unrecorded, []
        try:
            if entries:
                await parts.trail.record(entries)
        except AuditUnavailable as error:
            self._unrecorded = [*entries, *self._unrecorded][-_UNRECORDED_MOST:]
            log.warning("sweep is not in the audit log yet", connection=connection.name, error=str(error))


def _where(swept: Swept) -> dict[str, str]:
    return {name: value for name, value in (("identity", swept.identity), ("place", swept.place)) if value}
