"""Recover: what a dead process left half done is finished, in the background, while the API already answers."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from broker.engines.protocol import Extension
from broker.errors import BrokerError, EngineError
from broker.leases import lifecycle, records
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.protocol import Move

_PAGE = 256

log = structlog.get_logger(__name__)


class Recovery:
    """What start-up does once, and what a database's restart makes necessary again."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started: dict[ConnectionNumber, str] = {}

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

    async def reapply(self) -> int:
        """Turns on once more the logins of leases handed out and not settled: the database may have lost them, or never heard.

        Answers how many are on. What can't be reached is left for the next time.
        """
        done: list[LeaseNumber] = []
        by_connection: dict[ConnectionNumber, list[Lease]] = {}
        for lease in await self._parts.store.unsettled(_PAGE * 16):
            by_connection.setdefault(lease.connection, []).append(lease)
        for number, leases in by_connection.items():
            try:
                engine = await self._parts.catalog.engine(number)
                for start in range(0, len(leases), _PAGE):
                    page = leases[start : start + _PAGE]
                    outcomes = await engine.enable([self._extension(lease) for lease in page])
                    done.extend(outcome.number for outcome in outcomes if outcome.error is None)
            except (EngineError, BrokerError) as error:
                log.warning("logins not re-applied", connection=leases[0].facts.connection_name, error=str(error))
        if done:
            await self._parts.store.settle(done)
        return len(done)

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
