"""Hands out prepared users, many at a time: what waits shares two barriers and one statement string.

Barrier 1: one commit turns the whole batch `active`, one flush has its request entries; only then may a statement reach the
database, so whoever can log in has a lease row and an audit entry. Barrier 2: one flush has the response entries; then the callers
hear. Each connection has a lane of its own, so a slow database delays nobody else; two batches per lane are under way at most, so
that one waits for the disc while the other waits for the database. A batch of one takes the same path.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.engines.guard import Guard
from broker.engines.protocol import Extension, Outcome
from broker.errors import EngineError, LimitExceeded, OutcomeUnknown, Unavailable
from broker.leases import lifecycle
from broker.leases.ask import RequestRecord, beside_record, on_record
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import ConnectionNumber, LeaseNumber
from broker.store.words import Handout, Move, Refusal

_BATCH = 64
_IN_FLIGHT = 2
_WAITING_MOST = 4_096
_PATIENCE_S = 0.05
"""How long those who wait leave a batch alone; longer than it takes where nothing is the matter."""
_SETTLE_AFTER_MS = 2_000
"""PostgreSQL flushes an asynchronous commit within three times `wal_writer_delay` (200 ms by default)."""


class HandoutItem(Struct, eq=False):
    """One prepared user to hand out, and its audit entries."""

    handout: Handout
    extension: Extension
    request: RequestRecord
    respond: Callable[[], bytes]
    done: asyncio.Future[Refusal | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def abandoned(self) -> bool:
        """Whether its caller has stopped waiting: was cancelled, or out of time."""
        return self.done.cancelled()

    @property
    def served(self) -> bool:
        """Whether it was answered that its user can log in."""
        done = self.done
        return done.done() and not done.cancelled() and done.exception() is None and done.result() is None

    def answer(self, refusal: Refusal | None) -> None:
        """Lets the caller go on, if it still waits."""
        if not self.done.done():
            self.done.set_result(refusal)

    def fail(self, error: BaseException) -> None:
        """Lets the caller go on with an error, if it still waits."""
        if not self.done.done():
            self.done.set_exception(error)


class Enabled(Struct, frozen=True):
    """A login that was turned on by an asynchronous commit at `at_ms`."""

    at_ms: int
    connection: ConnectionNumber
    number: LeaseNumber


class Pump:
    """The lanes of all connections."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lanes: dict[ConnectionNumber, _Lane] = {}
        self._unsettled: deque[Enabled] = deque()

    async def hand_out(self, connection: Connection, item: HandoutItem) -> Refusal | None:
        """Carries `item` through both barriers. None: its user can log in and both entries are durable.

        A refusal left everything as it was. Raises `LimitExceeded` when too many wait, `DatabaseUnavailable` or another `EngineError`
        when the login could not be turned on (the lease is being revoked then), `AuditUnavailable`, `StoreUnavailable`; then the
        request entry may not be written yet. When it is cancelled, the user stays prepared or its lease is revoked.
        """
        lane = self._lanes.get(connection.number)
        if lane is None:
            lane = self._lanes[connection.number] = _Lane(self._parts, connection, self._unsettled)
        lane.submit(connection, item)
        try:
            return await item.done
        except asyncio.CancelledError:
            if item.served:
                # It was answered, and cancelled before it could hear that.
                await asyncio.shield(lane.take_back([item], "not answered"))
            raise

    def ripe(self) -> list[Enabled]:
        """Logins turned on long enough ago to be on their databases' discs, if those did not restart meanwhile; each once."""
        before = self._parts.store.now_ms() - _SETTLE_AFTER_MS
        found = []
        while self._unsettled and self._unsettled[0].at_ms <= before:
            found.append(self._unsettled.popleft())
        return found

    def enabled_again(self, enabled: Enabled) -> None:
        """A login was turned on once more and has to ripen anew."""
        self._unsettled.append(enabled)


class _Lane:
    def __init__(self, parts: Parts, connection: Connection, unsettled: deque[Enabled]) -> None:
        self._parts = parts
        self._connection = connection
        self._unsettled = unsettled
        self._waiting: deque[HandoutItem] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._about_to_run = False
        self._began_s = 0.0
        self._second_look: asyncio.TimerHandle | None = None

    def submit(self, connection: Connection, item: HandoutItem) -> None:
        self._connection = connection
        if len(self._waiting) >= _WAITING_MOST:
            raise LimitExceeded(
                f"connection {self._connection.name}: {_WAITING_MOST} requests wait already",
                limit="requests waiting per connection",
            )
        self._waiting.append(item)
        self._start_if_due()

    def _start_if_due(self) -> None:
        if self._about_to_run or len(self._running) >= _IN_FLIGHT:
            return
        loop = asyncio.get_running_loop()
        if self._is_due():
            # It begins after whatever else is ready on the loop now, so that requests that came together go together.
            self._about_to_run = True
            task = loop.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._ended)
        elif self._waiting and self._second_look is None:
            self._second_look = loop.call_later(_PATIENCE_S, self._look_again)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Who came while as many batches as may be were under way has nobody else to see that the other one takes long.
            self._start_if_due()

    def _look_again(self) -> None:
        self._second_look = None
        self._start_if_due()

    def _is_due(self) -> bool:
        """Whether a batch is to begin: when none is under way, or as many wait as are under way, or that takes long.

        A batch costs three flushes, however many it carries. Those who were answered together ask again one by one; the first of
        them would go off alone, and the flushes be spent on ever smaller batches.
        """
        if len(self._waiting) >= max(1, self._under_way):
            return True
        return bool(self._waiting) and asyncio.get_running_loop().time() - self._began_s >= _PATIENCE_S

    async def _run(self) -> None:
        self._about_to_run = False
        while self._is_due():
            count = min(_BATCH, len(self._waiting))
            self._under_way += count
            self._began_s = asyncio.get_running_loop().time()
            try:
                await self._carry([self._waiting.popleft() for _ in range(count)])
            finally:
                self._under_way -= count

    async def _carry(self, items: Sequence[HandoutItem]) -> None:
        try:
            with self._parts.holds.login([item.handout.number for item in items]):
                engine = await self._engine()
                claimed = await self._claim([item for item in items if not item.abandoned])
                enabled = await self._enable(engine, claimed) if claimed else ()
                if enabled:
                    await self._tell(enabled)
        except Exception as error:  # noqa: BLE001 - every caller must hear; the error itself goes to each of them
            for item in items:
                item.fail(error)

    async def _engine(self) -> Guard:
        """The engine, asked for first: while a database is away its prepared users must not be used up."""
        engine = await self._parts.catalog.engine_for(self._connection)
        engine.refuse_if_open()
        return engine

    async def _claim(self, items: Sequence[HandoutItem]) -> Sequence[HandoutItem]:
        """Barrier 1. Answers the items that are claimed; the others have heard."""
        parts = self._parts
        if not items:
            return ()
        try:
            refusals, unrecorded = await beside_record(
                parts.store.hand_out([item.handout for item in items]), on_record(parts.trail, [item.request for item in items])
            )
        except OutcomeUnknown:
            # They may be active, or prepared still: none of these is handed out any more.
            await self.take_back(items, "perhaps not claimed")
            raise
        claimed = []
        for item, refusal in zip(items, refusals, strict=True):
            if refusal is None:
                claimed.append(item)
            else:
                item.answer(refusal)
        if unrecorded is not None:
            await self.take_back(claimed, "not audited")
            raise unrecorded
        return claimed

    async def _enable(self, engine: Guard, items: Sequence[HandoutItem]) -> Sequence[HandoutItem]:
        outcomes: Sequence[Outcome]
        try:
            outcomes = await engine.enable([item.extension for item in items])
        except EngineError as error:
            outcomes = [Outcome(item.handout.number, error) for item in items]
        by_number = {item.handout.number: item for item in items}
        bad = [(by_number.pop(outcome.number), outcome.error) for outcome in outcomes if outcome.error is not None]
        if bad:
            await self.take_back([item for item, _ in bad], "login not turned on")
            for item, failure in bad:
                item.fail(failure)
        return list(by_number.values())

    async def _tell(self, items: Sequence[HandoutItem]) -> None:
        """Barrier 2."""
        try:
            await self._parts.trail.record([item.respond() for item in items])
        except Exception:
            await self.take_back(items, "not audited")
            raise
        now = self._parts.store.now_ms()
        left = [item for item in items if item.abandoned]
        for item in items:
            self._unsettled.append(Enabled(now, self._connection.number, item.handout.number))
            item.answer(None)
        # Last: who left while this waits for the store would be neither answered nor among these.
        await self.take_back(left, "not answered")

    async def take_back(self, items: Sequence[HandoutItem], reason: str) -> None:
        """Revokes leases that nobody will hear of. If the store can't note it, they end with their time."""
        if not items:
            return
        now = self._parts.store.now_ms()
        moves = [
            Move(
                number=item.handout.number,
                expect=lifecycle.expected(Event.ENDED),
                to=lifecycle.target(Event.ENDED),
                due_in_ms=0,
                facts=replace(item.handout.facts, password=None, reason=reason, revoke_started_ms=now),
            )
            for item in items
        ]
        try:
            await self._parts.store.move(moves)
        except Unavailable:
            return
        self._parts.wake_expiry()
