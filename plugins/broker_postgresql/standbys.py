"""Hot standbys: a revocation ends sessions there too, once the standby itself lets nobody in any more.

A standby replays roles, not sessions: after NOLOGIN and DROP ROLE have arrived there, who is in stays in and reads. So each standby is
asked how far it has replayed; from the place at which the login was off on the primary, nobody new gets in, and who is in, or hides in a
login, is ended there. A standby that is away, lags, or takes writes itself keeps the users' revocation from being done: its part is owed,
and the user stays without login until then, since only while it exists its hidden logins there can be told from others'. One that was away
is asked in the background until it answers, and meanwhile holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from broker.clock import stopwatch_s
from broker.engines.protocol import Outcome, Swept, User
from broker.errors import DatabaseUnavailable, UserRemains
from broker_postgresql import sessions, sweep
from broker_postgresql.connector import Connector, Purpose
from broker_postgresql.failures import first_line, is_foreseen, leaves_connection_usable
from broker_postgresql.hidden import Hidden, remedy
from broker_postgresql.identity import ours
from broker_postgresql.lanes import Lanes
from broker_postgresql.membership import join
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session

_PURPOSE = Purpose(statement_timeout_s=5, lock_timeout_ms=1_000, settings={})
_LIMIT_S = 7.0
"""For all that one call wants of one standby, once it has its turn."""
_PATIENCE_S = 9.0
"""For all standbys of a stage together, turns included: what is slow there must not look like a primary that does not answer."""
_LAG_S = 2.0
"""How long a batch waits for a standby to catch up; the next one does only once that one's place in the log was reached."""
_END_S = 2.0
_PAUSE_S = 0.02
_FIRST_AWAY_S, _LONGEST_AWAY_S = 2.0, 16.0
"""How long one that was away is not asked again, doubled each time until it has done what a revocation wanted."""

_BY_HAND = (
    "/* on {place} */ SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
    "WHERE usesysid = '{oid}'::pg_catalog.oid"
)
_AWAY = "can't be reached ({why}), so sessions of the user may go on there; it is asked again, or take it off the connection's standbys"
_PROMOTED = (
    "is no standby of this server: it takes writes itself; take it off the connection's standbys, or connect to it instead"
)
_LAGS = "has not replayed yet that the user's login is off ({behind} bytes behind)"
_UNTOLD = "has a login in progress that may be the user's, and the broker's login can't become the user there to end it"
_STILL_OPEN = "still has sessions of the user; they were told to end, as far as the broker's login may"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a primary has written its log, and which server it is."""

    lsn: str
    started: str

    @property
    def bytes(self) -> int:
        """The place in the log as a number."""
        high, _, low = self.lsn.partition("/")
        return (int(high, 16) << 32) + int(low, 16)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps one user's revocation from being done on a standby."""

    text: str
    powerless: bool = False
    """Whether our login's membership in the user may be what is missing."""
    untold: bool = False
    """Whether it is a login that nobody can say whose it is: no session of the user's yet, which its OID would find."""


class Standby:
    """One standby: a connection to it, kept, and what is known of it."""

    def __init__(self, host: str, port: int, connector: Connector) -> None:
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._address = (host, port)
        self._connector = connector
        self._hidden = Hidden(f"standby {self.name}")
        self._session: Session | None = None
        self._closed = False
        self._turn = asyncio.Lock()
        self._away_s = 0.0
        self._why_away = ""
        """Empty: it is not away, as far as is known."""
        self._return: asyncio.Task[None] | None = None
        self._awaited = 0
        """The place in the log for which a batch waited in vain."""

    async def contain(self, oids: Sequence[int], primary: Position) -> dict[int, Trouble]:
        """Sees to it that the users can't get in and are not in; answers what is wrong with whom. Raises `DatabaseUnavailable`."""
        return await self._ask(lambda session: self._contain(session, oids, primary))

    async def sweep(self) -> list[Swept]:
        """See `sweep.sweep`. Raises `DatabaseUnavailable`."""
        return await self._ask(lambda session: sweep.sweep(session, self.name))

    async def abandoned(self) -> list[Swept]:
        """See `sweep.abandoned`. Raises `DatabaseUnavailable`."""
        return await self._ask(lambda session: sweep.abandoned(session, self.name))

    def close(self) -> None:
        """Closes the connection; one in use is closed after its use."""
        self._closed = True
        if self._return is not None:
            self._return.cancel()
            self._return = None
        session, self._session = self._session, None
        if session is not None:
            session.wire.terminate()

    def reopen(self) -> None:
        """Lets a connection be kept again, and has it asked again if it was away."""
        self._closed, self._why_away = False, ""

    async def _contain(self, session: Session, oids: Sequence[int], primary: Position) -> dict[int, Trouble]:
        deadline_s, told = stopwatch_s() + _LAG_S, False
        while True:
            [state] = await session.rows(QUERIES["standby"], primary.lsn, list(oids))
            if state["started"] == primary.started:
                return {}
            if not state["standby"]:
                await sessions.end(session, oids, _END_S)
                return dict.fromkeys(oids, Trouble(_PROMOTED))
            if state["caught_up"] and not state["open"]:
                break
            if stopwatch_s() > deadline_s or primary.bytes - state["behind"] < self._awaited:
                self._awaited = max(self._awaited, primary.bytes)
                break
            if not told:
                # Whoever is in can go already; others may still follow.
                told = True
                await sessions.tell(session, oids)
            await asyncio.sleep(_PAUSE_S)
        found = await self._hidden.end(session, oids)
        left = await sessions.end(session, oids, _END_S)
        late = oids if not state["caught_up"] else state["open"]
        powerless = not session.greeting.superuser
        troubles = dict.fromkeys(found.going, Trouble("still has a login of the user in progress; it was told to end"))
        troubles |= dict.fromkeys(found.untold, Trouble(_UNTOLD, powerless=powerless, untold=True))
        troubles |= dict.fromkeys(left, Trouble(_STILL_OPEN, powerless=powerless and not session.greeting.signals))
        return troubles | dict.fromkeys(late, Trouble(_LAGS.format(behind=max(0, state["behind"]))))

    async def _ask(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with self._turn:
            if self._why_away:
                raise DatabaseUnavailable(self._why_away)
            try:
                async with asyncio.timeout(_LIMIT_S):
                    answer = await self._over_connection(work)
            except Exception as error:
                if not is_foreseen(error):
                    raise
                self._note_away(error)
                if not self._closed:
                    self._return = asyncio.get_running_loop().create_task(self._come_back())
                raise DatabaseUnavailable(self._why_away) from error
            self._away_s = 0.0
            return answer

    async def _come_back(self) -> None:
        """Asks now and then until it lets us in, so that no revocation has to find out."""
        while self._why_away:
            await asyncio.sleep(self._away_s)
            try:
                async with asyncio.timeout(_LIMIT_S):
                    session = await self._connector.connect_to_standby(*self._address, _PURPOSE)
            except Exception as error:  # noqa: BLE001 - whatever it is, giving up would keep it away for ever
                self._note_away(error)
            else:
                self._why_away = ""
                self._keep(session)

    async def _over_connection(self, work: Callable[[Session], Awaitable[T]]) -> T:
        kept, self._session = self._session, None
        if kept is not None:
            try:
                return await self._over(kept, work)
            except Exception as error:
                # A standby that was started anew has cut the old connection; that alone does not make it away.
                if not is_foreseen(error) or isinstance(error, TimeoutError) or leaves_connection_usable(error):
                    raise
        return await self._over(await self._connector.connect_to_standby(*self._address, _PURPOSE), work)

    async def _over(self, session: Session, work: Callable[[Session], Awaitable[T]]) -> T:
        try:
            answer = await work(session)
        except BaseException:
            session.wire.terminate()
            raise
        self._keep(session)
        return answer

    def _keep(self, session: Session) -> None:
        if self._closed or self._session is not None:
            session.wire.terminate()
        else:
            self._session = session

    def _note_away(self, error: Exception) -> None:
        self._why_away = first_line(error) or f"no answer within {_LIMIT_S:g} s"
        self._away_s = min(max(_FIRST_AWAY_S, self._away_s * 2), _LONGEST_AWAY_S)


class Standbys:
    """The standbys that a connection names."""

    def __init__(self, addresses: Sequence[tuple[str, int]], connector: Connector, lanes: Lanes) -> None:
        self._standbys = [Standby(host, port, connector) for host, port in addresses]
        self._lanes = lanes

    async def follow(self, users: Sequence[User], outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes of a stage on the primary, failed where a standby does not bear them out. Its users' OIDs are their identities."""
        oids = [int(outcome.identity) for outcome in outcomes if outcome.identity]
        if not self._standbys or not oids:
            return outcomes
        async with self._lanes.revoking.session() as session:
            login, primary = session.greeting.login, await _position(session)
        deadline_s = asyncio.get_running_loop().time() + _PATIENCE_S
        found = await self._contain(oids, primary, deadline_s)
        powerless = {oid for troubles in found.values() for oid, trouble in troubles.items() if trouble.powerless}
        if powerless:
            # Our login has to become a member on the primary, and that has to arrive at the standbys.
            async with self._lanes.revoking.session() as session:
                await join(session, [one for one in await ours(session, users) if one.oid in powerless])
                primary = await _position(session)
            found = await self._contain(oids, primary, deadline_s)
        in_the_way = await self._in_the_way({oid for each in found.values() for oid, trouble in each.items() if trouble.untold})
        return [_failed(outcome, found, login, in_the_way) for outcome in outcomes]

    async def _in_the_way(self, oids: AbstractSet[int]) -> dict[int, tuple[str, ...]]:
        """Statements that make it possible to act as these users. Rights come from the primary, for standbys too."""
        if not oids:
            return {}
        async with self._lanes.revoking.session() as session:
            return {oid: await remedy(session, oid) for oid in oids}

    async def sweep(self) -> list[Swept]:
        """Sweeps every standby; one that does not answer is named."""
        return await self._each(Standby.sweep)

    async def abandoned(self) -> list[Swept]:
        """What there is to be swept on every standby; one that does not answer is named."""
        return await self._each(Standby.abandoned)

    def close(self) -> None:
        """Closes the connections; those in use are closed after their use."""
        for standby in self._standbys:
            standby.close()

    def reopen(self) -> None:
        """Lets connections be kept again."""
        for standby in self._standbys:
            standby.reopen()

    async def _each(self, ask: Callable[[Standby], Awaitable[list[Swept]]]) -> list[Swept]:
        deadline_s = asyncio.get_running_loop().time() + _PATIENCE_S
        answers = await asyncio.gather(*(_answered(standby, ask, deadline_s) for standby in self._standbys))
        return [each for answer in answers for each in answer]

    async def _contain(self, oids: Sequence[int], primary: Position, deadline_s: float) -> dict[str, dict[int, Trouble]]:
        answers = await asyncio.gather(*(_contained(standby, oids, primary, deadline_s) for standby in self._standbys))
        return {standby.name: answer for standby, answer in zip(self._standbys, answers, strict=True)}


async def _contained(standby: Standby, oids: Sequence[int], primary: Position, deadline_s: float) -> dict[int, Trouble]:
    try:
        async with _until(deadline_s):
            return await standby.contain(oids, primary)
    except DatabaseUnavailable as error:
        return dict.fromkeys(oids, Trouble(_AWAY.format(why=error)))


async def _answered(standby: Standby, ask: Callable[[Standby], Awaitable[list[Swept]]], deadline_s: float) -> list[Swept]:
    try:
        async with _until(deadline_s):
            return await ask(standby)
    except DatabaseUnavailable as error:
        return [Swept(place=standby.name, error=DatabaseUnavailable(f"standby {standby.name} can't be reached: {error}"))]


@asynccontextmanager
async def _until(deadline_s: float) -> AsyncIterator[None]:
    """Raises `DatabaseUnavailable` where the block takes longer than that."""
    try:
        async with asyncio.timeout_at(deadline_s):
            yield
    except TimeoutError:
        raise DatabaseUnavailable(f"busy with others for {_PATIENCE_S:g} s") from None


async def _position(session: Session) -> Position:
    [row] = await session.rows(QUERIES["position"])
    return Position(row["lsn"], row["started"])


def _failed(
    outcome: Outcome, found: Mapping[str, Mapping[int, Trouble]], login: str, in_the_way: Mapping[int, tuple[str, ...]]
) -> Outcome:
    """The outcome, failed by the standbys that are in the user's way; each of them is named."""
    if outcome.error is not None or not outcome.identity:
        return outcome
    oid = int(outcome.identity)
    owed = {name: troubles[oid] for name, troubles in found.items() if oid in troubles}
    if not owed:
        return outcome
    powerless = any(trouble.powerless and not trouble.untold for trouble in owed.values())
    grant = (f"GRANT pg_signal_backend TO {identifier(login)}",) if powerless else ()
    by_hand = (_BY_HAND.format(place=name, oid=oid) for name, trouble in owed.items() if not trouble.untold)
    text = "; ".join(f"standby {name} {trouble.text}" for name, trouble in owed.items())
    return Outcome(outcome.number, UserRemains(text, remedy=(*grant, *in_the_way.get(oid, ()), *by_hand)), outcome.identity)
