"""Recover: what a dead process left half done is finished, in the background, while the API already answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.engines.protocol import Outcome
from broker.errors import DatabaseUnavailable, EngineError
from broker.leases import lifecycle, logins, records
from broker.leases.failover import Failover
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.pump import Enabled, Pump
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.words import Move

_PAGE = 256

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Server:
    """The server that a connection led to, and since when this process has known that one."""

    started: str
    since_ms: int


class Recovery:
    """What start-up does once, and what a database's restart makes necessary again."""

    def __init__(self, parts: Parts, pump: Pump, failover: Failover) -> None:
        self._parts = parts
        self._failover = failover
        self._pump = pump
        self._servers: dict[ConnectionNumber, _Server] = {}
        self._owed: set[ConnectionNumber] = set()
        """Connections whose logins of an earlier process may be lost, until they were turned on again."""

    async def at_start(self, highest: LeaseNumber) -> int:
        """Ends the intents (`reserved`, `preparing`) up to `highest`, the greatest number before this process; answers how many.

        Their users may exist or not; revocation copes with both. Claims of the dead process fall due by themselves, sooner here.
        """
        for connection in self._parts.catalog.connections():
            if await self._parts.store.unsettled(1, connection=connection.number):
                self._owed.add(connection.number)
        count = 0
        for states in ((LeaseState.RESERVED, LeaseState.PREPARING), (LeaseState.REVOKING,)):
            after = LeaseNumber(0)
            while page := await self._page(states, after, highest):
                after = page[-1].number
                await self._parts.store.move([self._recovered(lease) for lease in page])
                count += len(page) if LeaseState.RESERVED in states else 0
        if count:
            request = records.new_request("recover", f"{records.MOUNT.point}leases", {"intents": count})
            await self._parts.trail.record([records.request_entry(self._parts.scribe, self._parts.store.now_ms(), request)])
            log.info("recovered intents of an earlier process", intents=count)
        self._parts.wake_expiry()
        return count

    async def settle(self) -> None:
        """Settles logins that are on disc by now, and turns on again those that a restarted database may have lost."""
        ripe: dict[ConnectionNumber, list[Enabled]] = {}
        for enabled in self._pump.ripe():
            ripe.setdefault(enabled.connection, []).append(enabled)
        for connection in self._parts.catalog.connections():
            number = connection.number
            if not self._parts.catalog.in_use(number) and number not in self._owed:
                continue
            try:
                server = await self._same_server(connection)
            except EngineError:
                # Whatever became ripe stays unsettled in the store, and is turned on again when the database is back.
                self._servers.pop(number, None)
                continue
            await self._parts.store.settle(
                [enabled.number for enabled in ripe.get(number, ()) if enabled.at_ms >= server.since_ms]
            )

    async def _same_server(self, connection: Connection) -> _Server:
        """The server that the connection leads to; where it is another one than before, logins have been turned on again."""
        number = connection.number
        health = await (await self._parts.catalog.engine(number)).health()
        await self._failover.notice(connection, health)
        server = self._servers.get(number)
        if server is None or server.started != health.started:
            server = _Server(health.started, self._parts.store.now_ms())
            await self.reapply(number)
            self._servers[number] = server
            self._owed.discard(number)
        return server

    async def reapply(self, connection: ConnectionNumber) -> None:
        """Turns on once more the logins of a connection's unsettled leases: the database may have lost them, or never heard.

        Raises `DatabaseUnavailable` when it did not play along for all of them; a user that is missing is only logged.
        """
        store, after, count, name = self._parts.store, LeaseNumber(0), 0, ""
        while page := await store.unsettled(_PAGE, connection=connection, after=after):
            after, count, name = page[-1].number, count + len(page), page[-1].facts.connection_name
            engine = await self._parts.catalog.engine(connection)
            self._settle_later(connection, await logins.turn_on(self._parts, engine, [lease.number for lease in page]))
        if count:
            log.info("logins turned on again", connection=name, leases=count)

    def _settle_later(self, connection: ConnectionNumber, outcomes: Sequence[Outcome]) -> None:
        now = self._parts.store.now_ms()
        for outcome in outcomes:
            if outcome.error is None:
                self._pump.enabled_again(Enabled(now, connection, outcome.number))
            elif isinstance(outcome.error, DatabaseUnavailable):
                raise outcome.error
            else:
                log.warning("login not turned on again", lease=outcome.number, error=str(outcome.error))

    async def _page(self, states: Sequence[LeaseState], after: LeaseNumber, highest: LeaseNumber) -> Sequence[Lease]:
        page = await self._parts.store.leases_in(states, after=after, limit=_PAGE)
        return [lease for lease in page if lease.number <= highest]

    def _recovered(self, lease: Lease) -> Move:
        """An intent ends; a revocation that the dead process had claimed is due at once."""
        ending, now = lease.state in lifecycle.expected(Event.ENDED), self._parts.store.now_ms()
        return Move(
            number=lease.number,
            expect=(lease.state,),
            to=LeaseState.REVOKING,
            due_in_ms=0,
            stage=Stage.NONE if ending else lease.stage,
            attempts=lease.attempts,
            # A lease that this process has claimed meanwhile is left alone.
            epoch=lease.epoch,
            facts=replace(lease.facts, password=None, reason="recovered", revoke_started_ms=now) if ending else None,
        )
