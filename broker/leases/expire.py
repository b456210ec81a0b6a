"""Expire: whatever falls due is taken through its revocation, connection by connection, in batches.

The due index of the store is the truth; no timer and no object per lease. Each connection has at most one drain under way, so
that a dead database keeps no other waiting; the engine's breaker ends its drain at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.clock import stopwatch_s
from broker.engines.protocol import Engine
from broker.errors import BrokerError, DatabaseUnavailable, OutcomeUnknown, StoreUnavailable, Unavailable
from broker.leases import grace, lifecycle, stages
from broker.leases.contain import Containment
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.witness import Witness
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.words import Move, Step

_HELD_AGAIN_MS = 500
_CLAIM_MS = 60_000
"""How long a claim holds until the first step is durable, which then makes it hold longer."""
_ENGINE_AGAIN_MS = 5_000
_REST = 10
"""How many times as long as its last batch took a drain rests while leases are asked for."""
_REST_MOST_S = 2
"""A batch takes longer where the database is slow, and then resting only delays what is due behind it."""
_BATCHES = 2
"""Of one connection under way: while one waits for the database, rows and entries of the other are written."""
_BREATH_MS = 50
_DUE_STATES = (
    LeaseState.ACTIVE,
    LeaseState.GRACE,
    LeaseState.REVOKING,
    LeaseState.STUCK,
    LeaseState.RESERVED,
    LeaseState.PREPARING,
)
IDLE_MS = 60_000

log = structlog.get_logger(__name__)


class Outcomes:
    """How revocations came out: gone, or the error of their last attempt."""

    def __init__(self) -> None:
        self._heard: dict[LeaseNumber, BrokerError | None] = {}
        self._more = asyncio.Event()

    def add(self, outcomes: Mapping[LeaseNumber, BrokerError | None]) -> None:
        """Takes in what became of some leases."""
        self._heard.update(outcomes)
        self._more.set()

    async def of(self, numbers: Collection[LeaseNumber]) -> dict[LeaseNumber, BrokerError]:
        """Waits until all of these were heard of; answers those that failed."""
        while not self._heard.keys() >= set(numbers):
            self._more.clear()
            await self._more.wait()
        return self.failures(numbers)

    def unheard(self, numbers: Collection[LeaseNumber]) -> list[LeaseNumber]:
        """Those of these of which nothing was heard so far."""
        return [number for number in numbers if number not in self._heard]

    def failures(self, numbers: Collection[LeaseNumber]) -> dict[LeaseNumber, BrokerError]:
        """Those of these that were heard to have failed so far."""
        return {number: error for number in numbers if (error := self._heard.get(number)) is not None}


class Expirer:
    """Runs the due index down."""

    def __init__(self, parts: Parts, witness: Witness) -> None:
        self._parts = parts
        self._witness = witness
        self._containment = Containment(parts, witness)
        self._drains: dict[ConnectionNumber, asyncio.Task[None]] = {}
        self._asked_again: set[ConnectionNumber] = set()
        """Connections that were to be drained while they were: something may have fallen due behind their last look."""
        self._claimed: dict[ConnectionNumber, dict[LeaseNumber, Lease]] = {}
        """Work under way. What store or audit log cut short stays here and is given back once they can be written: a claim holds long."""
        self._resting: dict[ConnectionNumber, int] = {}
        """Until when a database that was away is left alone, so that its backlog is not claimed and put back batch by batch."""
        self._listeners: list[Outcomes] = []

    async def run(self) -> int:
        """Starts a drain for each connection that has due work; answers in how many milliseconds to look again."""
        now = self._parts.store.now_ms()
        for connection in self._parts.catalog.connections():
            if connection.number in self._drains:
                self._asked_again.add(connection.number)
            elif self._resting.get(connection.number, 0) <= now:
                self._start_drain(connection)
        resting = {number: until_ms for number, until_ms in self._resting.items() if until_ms > now}
        due_ms = await self._parts.store.next_due_ms(_DUE_STATES, not_connections=resting)
        again_ms = min([*resting.values(), now + IDLE_MS if due_ms is None else due_ms])
        # What is due now is being drained: looking again at once would only spin.
        return max(_BREATH_MS, again_ms - now)

    def _start_drain(self, connection: Connection) -> None:
        def ended(_: asyncio.Task[None]) -> None:
            del self._drains[connection.number]
            if connection.number in self._asked_again:
                self._asked_again.discard(connection.number)
                self._parts.wake_expiry()

        task = asyncio.get_running_loop().create_task(self._drain(connection))
        self._drains[connection.number] = task
        task.add_done_callback(ended)

    async def stop(self) -> None:
        """Ends the drains where they are; every stage done so far is durable."""
        self._asked_again.clear()
        drains = list(self._drains.values())
        for task in drains:
            task.cancel()
        await asyncio.gather(*drains, return_exceptions=True)

    @contextmanager
    def listen(self) -> Iterator[Outcomes]:
        """What comes of revocations while the block lasts; begun before the leases are ended, it misses none."""
        # Somebody waits: a database that was away may be asked at once, and what is said of it from here on is news.
        self._resting.clear()
        self._parts.held_up.clear()
        heard = Outcomes()
        self._listeners.append(heard)
        try:
            yield heard
        finally:
            self._listeners.remove(heard)

    async def _drain(self, connection: Connection) -> None:
        try:
            await self._give_back(connection)
            # The first batch goes alone: it may find the database away.
            if not await self._one_batch(connection):
                return
            results = await asyncio.gather(*(self._work_off(connection) for _ in range(_BATCHES)), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except Unavailable as error:
            self._rest(connection, error.retry_after_s * 1_000, error)
            log.warning("expiry waits", connection=connection.name, error=str(error))
            if isinstance(error, StoreUnavailable | OutcomeUnknown):
                await self._contain(connection)
        except BrokerError as error:
            self._rest(connection, _ENGINE_AGAIN_MS, error)
            log.exception("expiry failed", connection=connection.name, error=str(error))

    async def _contain(self, connection: Connection) -> None:
        """Access is taken away all the same."""
        try:
            engine = await self._parts.catalog.engine_for(connection)
            await self._containment.run(connection, engine, await self._still_claimed(connection))
        except BrokerError as error:
            log.warning("what is due could not be contained", connection=connection.name, error=str(error))

    async def _work_off(self, connection: Connection) -> None:
        while await self._one_batch(connection):
            pass

    async def _one_batch(self, connection: Connection) -> bool:
        """Claims what is due and revokes it; whether it makes sense to claim more."""
        parts = self._parts
        leases = await parts.store.claim_due(
            _DUE_STATES, limit=parts.settings.revocation_batch, hold_ms=_CLAIM_MS, connection=connection.number
        )
        self._containment.over(connection.number)
        if not leases:
            return False
        claimed = self._claimed.setdefault(connection.number, {})
        claimed.update((lease.number, lease) for lease in leases)
        began_s = stopwatch_s()
        goes_on = await self._revoke(connection, leases)
        for lease in leases:
            claimed.pop(lease.number, None)
        if goes_on and parts.issuing:
            # Issuing has priority: while anybody waits for a lease, each of the batches under way works an eleventh of the time.
            await asyncio.sleep(min(_REST_MOST_S, _REST * (stopwatch_s() - began_s)))
        return goes_on

    def _rest(self, connection: Connection, for_ms: int, why: BrokerError) -> None:
        self._resting[connection.number] = self._parts.store.now_ms() + for_ms
        self._parts.held_up[connection.number] = str(why)

    async def _revoke(self, connection: Connection, leases: Sequence[Lease]) -> bool:
        """Whether it makes sense to claim more now."""
        try:
            engine = await self._parts.catalog.engine_for(connection)
        except BrokerError as error:
            await self._postpone(leases, _ENGINE_AGAIN_MS)
            self._rest(connection, _ENGINE_AGAIN_MS, error)
            self._tell({lease.number: error for lease in leases})
            log.warning("expiry waits", connection=connection.name, error=str(error))
            return False
        ready = await self._ready(connection, engine, leases)
        now = self._parts.store.now_ms()
        spared = {lease.number: lease for lease in ready if lease.facts.session_grace_s and grace.owed(lease, now)}
        unreached = await grace.spare(self._parts, engine, list(spared.values())) if spared else None
        ending = await self._begin([lease for lease in ready if lease.number not in spared])
        if ending:
            return await self._advance(connection, engine, ending)
        if unreached is not None:
            self._rest(connection, unreached.retry_after_s * 1_000, unreached)
            return False
        if spared:
            self._parts.held_up.pop(connection.number, None)
        return bool(spared)

    async def _advance(self, connection: Connection, engine: Engine, ending: Sequence[Lease]) -> bool:
        """Takes leases through their stages, and tells who listens what came of it; whether it makes sense to claim more now."""
        try:
            result = await stages.advance(self._parts, engine, ending)
        except Unavailable as error:
            self._tell({lease.number: error for lease in ending})
            raise
        self._tell(dict.fromkeys(result.gone))
        self._tell(result.failures)
        if result.failures:
            number, failure = next(iter(result.failures.items()))
            log.warning(
                "revocations failed", connection=connection.name, leases=len(result.failures), first=number, error=str(failure)
            )
        away = [failure for failure in result.failures.values() if isinstance(failure, DatabaseUnavailable)]
        if len(away) == len(ending):
            self._rest(connection, away[0].retry_after_s * 1_000, away[0])
            return False
        self._parts.held_up.pop(connection.number, None)
        return True

    async def _give_back(self, connection: Connection) -> None:
        """Makes due at once what is still claimed by a drain that was cut short."""
        held = await self._still_claimed(connection)
        claimed = self._claimed.pop(connection.number, {})
        try:
            await self._postpone(held, 0)
        except Unavailable:
            self._claimed[connection.number] = claimed
            raise

    async def _still_claimed(self, connection: Connection) -> list[Lease]:
        claimed = self._claimed.get(connection.number, {})
        found = [(lease, await self._parts.store.lease(lease.number)) for lease in list(claimed.values())]
        return [
            now for lease, now in found if now is not None and now.epoch == lease.epoch and now.state is not LeaseState.GONE
        ]

    async def _ready(self, connection: Connection, engine: Engine, leases: Sequence[Lease]) -> list[Lease]:
        """All but those whom a call is giving a login, or about whom the clocks disagree: these are put off."""
        held = [lease for lease in leases if lease.number in self._parts.holds.logins]
        await self._postpone(held, _HELD_AGAIN_MS)
        ready = [lease for lease in leases if lease.number not in self._parts.holds.logins]
        fallen = [lease for lease in ready if lease.state in lifecycle.expected(Event.ENDED)]
        if fallen and self._witness.needed(connection, len(fallen)):
            wait_ms = await self._witness.wait_ms(connection, engine)
            if wait_ms:
                await self._postpone(fallen, wait_ms)
                return [lease for lease in ready if lease.state not in lifecycle.expected(Event.ENDED)]
        return ready

    async def _begin(self, ready: Sequence[Lease]) -> list[Lease]:
        """Moves what merely fell due to `revoking`, at its first stage also where the login was off: it may have been turned on since."""
        ended = await self._end([lease for lease in ready if lease.state in lifecycle.expected(Event.ENDED)])
        going = [lease for lease in ready if lease.number in ended or lease.state not in lifecycle.expected(Event.ENDED)]
        return [replace(lease, stage=Stage.NONE) if lease.state is LeaseState.GRACE else lease for lease in going]

    async def _end(self, leases: Sequence[Lease]) -> frozenset[LeaseNumber]:
        by_epoch: dict[int, list[LeaseNumber]] = {}
        for lease in leases:
            by_epoch.setdefault(lease.epoch, []).append(lease.number)
        steps = [
            Step(
                numbers=numbers,
                epoch=epoch,
                expect=lifecycle.expected(Event.ENDED),
                to=lifecycle.target(Event.ENDED),
                stage=Stage.NONE,
                due_in_ms=stages.HOLD_MS,
            )
            for epoch, numbers in by_epoch.items()
        ]
        return frozenset[LeaseNumber]().union(*await asyncio.gather(*(self._parts.store.step(step) for step in steps)))

    async def _postpone(self, leases: Sequence[Lease], by_ms: int) -> None:
        if leases:
            await self._parts.store.move([_postponed(lease, by_ms) for lease in leases])

    def _tell(self, outcomes: Mapping[LeaseNumber, BrokerError | None]) -> None:
        for heard in self._listeners:
            heard.add(outcomes)


def _postponed(lease: Lease, by_ms: int) -> Move:
    return Move(
        number=lease.number,
        expect=(lease.state,),
        to=lease.state,
        due_in_ms=by_ms,
        stage=lease.stage,
        attempts=lease.attempts,
        epoch=lease.epoch,
    )
