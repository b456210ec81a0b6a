"""Recover: what a dead process left half done is finished, in the background, while the API already answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from broker.engines.protocol import Extension
from broker.errors import BrokerError
from broker.leases import lifecycle, records
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.pump import Enabled, Pump
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.protocol import Move

_PAGE = 256
_UNSETTLED_MOST = 20_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Server:
    """The server that a connection led to, and since when this process has known that one."""

    started: str
    since_ms: int


class Recovery:
    """What start-up does once, and what a database's restart makes necessary again."""

    def __init__(self, parts: Parts, pump: Pump) -> None:
        self._parts = parts
        self._pump = pump
        self._servers: dict[ConnectionNumber, _Server] = {}

    async def at_start(self, highest: LeaseNumber) -> int:
        """Ends the intents (`reserved`, `preparing`) up to `highest`, the greatest number before this process; answers how many.

        Their users may exist or not; revocation copes with both. Claims of the dead process fall due by themselves, sooner here.
        """
        count = 0
        for states in ((LeaseState.RESERVED, LeaseState.PREPARING), (LeaseState.REVOKING,)):
            after = LeaseNumber(0)
            while page := await self._page(states, after, highest):
                after = page[-1].number
                await self._parts.store.move([self._recovered(lease) for lease in page])
                count += len(page) if LeaseState.RESERVED in states else 0
        if count:
            request = records.new_request("recover", f"{records.MOUNT.point}leases", {"intents": count})
            await self._parts.trail.record([records.asked(self._parts.scribe, self._parts.store.now_ms(), request)])
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
            if not self._parts.catalog.in_use(number):
                continue
            try:
                health = await (await self._parts.catalog.engine(number)).health()
            except BrokerError:
                self._servers.pop(number, None)
                continue
            server = self._servers.get(number)
            if server is None or server.started != health.started:
                server = self._servers[number] = _Server(health.started, self._parts.store.now_ms())
                await self.reapply(number)
            await self._parts.store.settle(
                [enabled.number for enabled in ripe.get(number, ()) if enabled.at_ms >= server.since_ms]
            )

    async def reapply(self, connection: ConnectionNumber) -> None:
        """Turns on once more the logins of a connection's unsettled leases: the database may have lost them, or never heard."""
        leases = [lease for lease in await self._parts.store.unsettled(_UNSETTLED_MOST) if lease.connection == connection]
        if not leases:
            return
        engine = await self._parts.catalog.engine(connection)
        for start in range(0, len(leases), _PAGE):
            page = [lease for lease in leases[start : start + _PAGE] if lease.number not in self._parts.busy]
            numbers = {lease.number for lease in page}
            self._parts.busy |= numbers
            try:
                outcomes = await engine.enable([self._extension(lease) for lease in page])
            finally:
                self._parts.busy -= numbers
            now = self._parts.store.now_ms()
            for outcome in outcomes:
                if outcome.error is None:
                    self._pump.enabled_again(Enabled(now, connection, outcome.number))
        log.info("logins turned on again", connection=leases[0].facts.connection_name, leases=len(leases))

    async def _page(self, states: Sequence[LeaseState], after: LeaseNumber, highest: LeaseNumber) -> Sequence[Lease]:
        page = await self._parts.store.leases_in(states, after=after, limit=_PAGE)
        return [lease for lease in page if lease.number <= highest]

    def _extension(self, lease: Lease) -> Extension:
        left_ms = max(0, lease.due_ms - self._parts.store.now_ms())
        return Extension(user=self._parts.markers.of(lease), lifetime_ms=left_ms)

    def _recovered(self, lease: Lease) -> Move:
        """An intent ends; a revocation that the dead process had claimed is due at once."""
        ending = lease.state in lifecycle.expected(Event.ENDED)
        return Move(
            number=lease.number,
            expect=(lease.state,),
            to=LeaseState.REVOKING,
            due_in_ms=0,
            stage=Stage.NONE if ending else lease.stage,
            attempts=lease.attempts,
        )
