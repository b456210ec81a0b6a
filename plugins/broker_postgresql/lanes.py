"""The connections of one engine, in three lanes, so that no kind of work starves another.

                 general                    enabling                  revoking
    for          making users, health       turning logins on         everything of a revocation
    commits      durable                    not waited for            durable
    of 4 / of 8  2 / 4                      1 / 2                     1 / 2

All lanes together hold at most `max_open_connections`, but for one that is closed once its successor stands. With fewer than
three, enabling shares the general lane, with one all share it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from broker.clock import stopwatch_s
from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker_postgresql.connector import Connector, Purpose
from broker_postgresql.failures import is_foreseen, leaves_connection_usable, translated
from broker_postgresql.late import Late
from broker_postgresql.session import Session
from broker_postgresql.settings import ConnectionSettings

# Its queries look up one thing by index, whatever the values; planned anew for them, making a user takes a third longer.
_GENERAL = Purpose(statement_timeout_s=30, lock_timeout_ms=5_000, settings={"plan_cache_mode": "force_generic_plan"})
# A lost enabling costs availability only: it is applied again. A lost drop would revive access.
_ENABLING = Purpose(statement_timeout_s=10, lock_timeout_ms=2_000, settings={"synchronous_commit": "off"})
_REVOKING = Purpose(statement_timeout_s=60, lock_timeout_ms=1_000, settings={})
_TIDY = "RESET SESSION AUTHORIZATION; SET ROLE NONE; RESET ALL; SELECT pg_catalog.pg_advisory_unlock_all()"
_TURN_S = 2.0
"""How long anybody waits for its turn; those who collide then are tried again, while one that hangs holds up nobody for longer."""
_SHARED_BELOW = 3
_DOUBLED_FROM = 8


class Lane:
    """At most `size` connections of one purpose. Waiting is in order of arrival."""

    def __init__(self, lanes: Lanes, purpose: Purpose, size: int, idle: int) -> None:
        self._lanes = lanes
        self._purpose = purpose
        self._idle_limit = idle
        self._slots = asyncio.Semaphore(size)
        self._idle: deque[Session] = deque()
        self._in_use: set[Session] = set()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection to the home database, for as long as the block lasts; our login itself acts.

        What the driver raises inside leaves as an `EngineError`. After a failure that may have left a statement running
        the connection is given up, and its backend remembered as late.
        """
        async with self.pinned() as session:
            await session.act_as("")
            yield session

    @asynccontextmanager
    async def pinned(self) -> AsyncIterator[Session]:
        """The same, acting as whatever role it last did: for those who set the role themselves, so that none is set in vain."""
        async with self._slots:
            session = await self._take()
            try:
                with self._using(session):
                    yield session
            except BaseException as error:
                await self._after(error, session)
                told = self._lanes.told(error)
                if told is error:
                    raise
                raise told from error
            else:
                self._give_back(session)

    @asynccontextmanager
    async def visit(self, database: str) -> AsyncIterator[Session]:
        """A connection to another database, made for the block and closed after it; it takes the place of one of the lane's."""
        async with self._slots:
            if self._idle:
                await _close(self._idle.popleft())
            session = await self._lanes.connect(self._purpose, database)
            try:
                with self._using(session):
                    yield session
            except BaseException as error:
                if not leaves_connection_usable(error):
                    self._lanes.give_up(session)
                told = self._lanes.told(error)
                if told is error:
                    raise
                raise told from error
            finally:
                await _close(session)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """See `Lanes.turn`."""
        return self._lanes.turn()

    def cut(self, below: int) -> None:
        """Ends at once whatever leads to a server of an earlier timeline, in use or not: it would do what is lost, or never answer."""
        for session in [*self._idle, *self._in_use]:
            if session.line.number < below:
                session.wire.terminate()

    @contextmanager
    def _using(self, session: Session) -> Iterator[None]:
        self._in_use.add(session)
        try:
            yield
        finally:
            self._in_use.discard(session)

    async def close(self) -> None:
        """Closes what is idle; what is in use is closed when it comes back."""
        while self._idle:
            await _close(self._idle.pop())

    async def _take(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            if self._lanes.fresh(session):
                return session
            if self._lanes.serves(session):
                return await self._renewed(session)
            session.wire.terminate()
        return await self._lanes.connect(self._purpose)

    async def _renewed(self, old: Session) -> Session:
        """A connection in place of one that is due, or that one where there is none: a user that fills the server would have its slot."""
        try:
            session = await self._lanes.connect(self._purpose)
        except DatabaseUnavailable:
            if self._lanes.serves(old):
                return old
            old.wire.terminate()
            raise
        except BaseException:
            self._idle.append(old)
            raise
        old.wire.terminate()
        return session

    async def _after(self, error: BaseException, session: Session) -> None:
        if leaves_connection_usable(error) and session.usable():
            try:
                await session.run(_TIDY)
                session.acting = ""
            except BaseException:
                self._lanes.give_up(session)
                raise
            self._give_back(session)
        else:
            self._lanes.give_up(session)

    def _give_back(self, session: Session) -> None:
        if self._lanes.serves(session) and len(self._idle) < self._idle_limit:
            self._idle.append(session)
        else:
            session.wire.terminate()


class Lanes:
    """All lanes, and what is known of the server from their connections."""

    def __init__(self, where: str, settings: ConnectionSettings, connector: Connector) -> None:
        self.late = Late()
        self._where = where
        self._lifetime_s = settings.max_connection_lifetime
        self._connector = connector
        self._retired_s = 0.0
        self._timeline = 0
        self._closed = False
        self._granting = asyncio.Lock()
        total = settings.open_connections
        enabling = 0 if total < _SHARED_BELOW else 1 if total < _DOUBLED_FROM else 2
        revoking = min(total - 1, 1 if total < _DOUBLED_FROM else 2)
        self.general = self._lane(_GENERAL, total - enabling - revoking, settings)
        self.enabling = self._lane(_ENABLING, enabling, settings) if enabling else self.general
        self.revoking = self._lane(_REVOKING, revoking, settings) if revoking else self.general

    async def connect(self, purpose: Purpose, database: str = "") -> Session:
        """A new connection. Raises `DatabaseUnavailable`."""
        session = await self._connector.connect(purpose, database)
        self._follow()
        return session

    async def look(self) -> None:
        """Looks now and then whether another host is the one to work with by now, and leaves the former one. Never raises."""
        await self._connector.look()
        self._follow()

    def _follow(self) -> None:
        """Cuts the connections to servers that were superseded."""
        if self._timeline < self._connector.hosts.timeline:
            self._timeline = self._connector.hosts.timeline
            for lane in {self.general, self.enabling, self.revoking}:
                lane.cut(self._timeline)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One at a time, of those who grant or revoke on the same objects and would fail each other (XX000); after a while, anyway.

        A lock of ours and not of the server, where any of its users could hold it.
        """
        try:
            async with asyncio.timeout(_TURN_S):
                await self._granting.acquire()
        except TimeoutError:
            mine = False
        else:
            mine = True
        try:
            yield
        finally:
            if mine:
                self._granting.release()

    def serves(self, session: Session) -> bool:
        """Whether a connection that nobody uses may be used again, if none that is newer can be had."""
        return session.usable() and session.born_s > self._retired_s and not self._closed

    def fresh(self, session: Session) -> bool:
        """Whether it is not due to be replaced either."""
        return self.serves(session) and not 0 < self._lifetime_s < stopwatch_s() - session.born_s

    def retire(self) -> None:
        """Has every connection made so far replaced at its next use."""
        self._retired_s = stopwatch_s()

    def give_up(self, session: Session) -> None:
        """Cuts a connection whose last statement may still be running, and has the others replaced: they may lead nowhere too."""
        self.late.note(session)
        if self._closed:
            self.late.leave()
        session.wire.terminate()
        self.retire()
        self._connector.doubt()

    def told(self, error: BaseException) -> BaseException:
        """The error as the engine's callers know it; a cancellation, or a mistake of the program, stays what it is."""
        return translated(error, self._where) if is_foreseen(error) else error

    async def farewell(self, origin: Origin) -> None:
        """Ends what still runs of calls that were given up, while somebody remembers them. Raises `EngineError`."""
        if self.late.pending:
            await self.late.settle(self.revoking.session, origin)

    async def close(self) -> None:
        """Closes all connections; one that is in use, or asked for later, is closed after its use."""
        self._closed = True
        self.late.leave()
        for lane in (self.general, self.enabling, self.revoking):
            await lane.close()

    def reopen(self) -> None:
        """Lets connections be kept again, and has the server looked for anew."""
        self._closed, self._timeline = False, 0
        self._connector.hosts.forget()

    def _lane(self, purpose: Purpose, size: int, settings: ConnectionSettings) -> Lane:
        return Lane(self, purpose, size, min(size, settings.idle_connections))


async def _close(session: Session) -> None:
    try:
        await session.wire.close(timeout=1)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it has to go
        session.wire.terminate()
