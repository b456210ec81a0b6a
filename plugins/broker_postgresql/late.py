"""Statements that may arrive late: the backends of calls that were given up, and those of dead processes of this broker.

A server goes on with what it received, whether or not the one who sent it still listens. So such backends are told to end as soon as
anything is revoked. Nothing waits for them but the proof that a user is absent: one that hangs, or is not ours to end, must not keep
anybody's login on. What a late statement may have turned on again meanwhile is turned off again once they are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from broker.clock import stopwatch_s
from broker.engines.protocol import Origin, Outcome, User
from broker.errors import UserRemains
from broker.model import LeaseNumber
from broker_postgresql.connector import application_name
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, literal
from broker_postgresql.session import Session

_LIMIT_S = 5.0
"""How long a backend may take to end, from when it was told first; after that nobody waits for it."""
_PAUSE_S = 0.02
_AGAIN_AT_ONCE = 256

_RUNS_ON = "statements of earlier calls may still run on the server; they were told to end: {backends}"
_NOT_OURS = "statements of an earlier process of this broker may still run, and the broker's login may not end them: {backends}"


class Backend(Struct, frozen=True):
    """A process of the server that may still run a statement of ours."""

    pid: int
    oid: int
    """Of its login."""
    login: str
    application: str

    def __str__(self) -> str:
        return f"process {self.pid} of {identifier(self.login)}"


class GivenUp(NamedTuple):
    """A backend whose connection was cut while it may have been running a statement; process id and start together name one."""

    pid: int
    started: datetime
    login: str


_LEFT: dict[str, set[GivenUp]] = {}
"""By cluster, what engines of this process had not seen gone when they were closed. A connection that was changed has another engine,
perhaps with another login, and its users are the same; which of the others have to do with it nobody knows, so each looks for them."""


class Late:
    """Backends that were given up, until they are seen gone; and whose login may have been turned on again by them."""

    def __init__(self) -> None:
        self._given_up: dict[str, set[GivenUp]] = {}
        self._earlier_boots_gone = False
        self._since_s: dict[Backend, float] = {}
        """Those that were there at the last look, and since when they have been told."""
        self._not_ours: frozenset[Backend] = frozenset()
        """Those of them that our login may not end."""
        self._doubtful: dict[LeaseNumber, User] = {}

    def note(self, session: Session) -> None:
        """Remembers the backend of a connection that was cut."""
        greeting = session.greeting
        given_up = GivenUp(greeting.pid, greeting.backend_start, greeting.login)
        self._given_up.setdefault(session.cluster, set()).add(given_up)

    @property
    def pending(self) -> bool:
        """Whether some were not yet seen gone."""
        return any(self._given_up.values())

    def leave(self) -> None:
        """Leaves those not yet seen gone to the engines that work at their cluster from now on, in this process."""
        for cluster, given_up in self._given_up.items():
            _LEFT.setdefault(cluster, set()).update(given_up)

    async def tell(self, session: Session, origin: Origin) -> bool:
        """Tells all late backends to end and waits for none; whether there were any. Costs nothing where none is known of."""
        ours, not_ours = await self._of_earlier_boots(session, origin)
        for one in await self._of_our_calls(session):
            (ours if await _told(session, one) else not_ours).append(one)
        now_s = stopwatch_s()
        self._since_s = {one: self._since_s.get(one, now_s) for one in (*ours, *not_ours)}
        self._not_ours = frozenset(not_ours)
        return bool(self._since_s)

    async def settle(self, open_session: Callable[[], AbstractAsyncContextManager[Session]], origin: Origin) -> None:
        """Waits until all late backends are seen gone, over a session that nobody has to do without meanwhile.

        Raises `UserRemains` where one was told long ago, or may not be ended by our login, with the statement that ends the latter.
        """
        while True:
            async with open_session() as session:
                if not await self.tell(session, origin):
                    return
            self._give_up_on(stopwatch_s() - _LIMIT_S)
            await asyncio.sleep(_PAUSE_S)

    def doubt(self, users: Iterable[User]) -> None:
        """Notes whose login is turned off while late statements may still turn it on."""
        if self._since_s:
            self._doubtful.update((user.number, user) for user in users)

    def dropped(self, numbers: Iterable[LeaseNumber]) -> None:
        """Forgets users that are there no more."""
        for number in numbers:
            self._doubtful.pop(number, None)

    async def turn_off_again(self, disable: Callable[[Sequence[User]], Awaitable[Sequence[Outcome]]]) -> None:
        """Has the logins of all doubtful users turned off, once no late statement is left; who can't be stays doubtful."""
        users = list(self._doubtful.values())
        for start in range(0, len(users), _AGAIN_AT_ONCE):
            outcomes = await disable(users[start : start + _AGAIN_AT_ONCE])
            self.dropped(outcome.number for outcome in outcomes if outcome.error is None)

    def _give_up_on(self, told_before_s: float) -> None:
        """Raises `UserRemains` where all that is left are backends that won't go by waiting."""
        if any(since_s > told_before_s for one, since_s in self._since_s.items() if one not in self._not_ours):
            return
        if self._not_ours:
            raise UserRemains(
                _NOT_OURS.format(backends=_named(self._not_ours)), remedy=[_by_hand(one) for one in self._not_ours]
            )
        raise UserRemains(_RUNS_ON.format(backends=_named(self._since_s)))

    async def _of_earlier_boots(self, session: Session, origin: Origin) -> tuple[list[Backend], list[Backend]]:
        """Those that were told, and those that our login may not end; of the latter such as do something, since nobody sends them more."""
        told: list[Backend] = []
        busy: list[Backend] = []
        if self._earlier_boots_gone:
            return told, busy
        patterns = (starting_with(f"broker/{origin.broker}/"), application_name(origin))
        for row in await session.rows(QUERIES["earlier_boots"], *patterns):
            one = _backend(row)
            if await _told(session, one):
                told.append(one)
            elif row["busy"]:
                busy.append(one)
        self._earlier_boots_gone = not told and not busy
        return told, busy

    async def _of_our_calls(self, session: Session) -> list[Backend]:
        ours, left = self._given_up.get(session.cluster, set()), _LEFT.get(session.cluster, set())
        asked = list(ours | left)
        if not asked:
            return []
        rows = await session.rows(QUERIES["given_up"], *map(list, zip(*asked, strict=True)))
        there = {row["pid"] for row in rows}
        for each in (ours, left):
            each.difference_update(one for one in asked if one.pid not in there)
        return [_backend(row) for row in rows]


def _backend(row: asyncpg.Record) -> Backend:
    return Backend(pid=row["pid"], oid=row["oid"], login=row["login"], application=row["application"])


async def _told(session: Session, one: Backend) -> bool:
    """Tells a backend to end; whether the server let us."""
    try:
        await session.rows(QUERIES["terminate_late"], one.pid, one.oid)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


def _named(backends: Iterable[Backend]) -> str:
    return ", ".join(sorted(map(str, backends)))


def _by_hand(one: Backend) -> str:
    """For a superuser, or whoever may end that login's sessions. A process id may be another's by the time it is run."""
    return (
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"  # noqa: S608 - a number and a literal
        f" WHERE pid = {one.pid} AND application_name = {literal(one.application)};"
    )


def starting_with(prefix: str) -> str:
    """The LIKE pattern of texts that begin with `prefix`."""
    escaped = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"{escaped}%"
