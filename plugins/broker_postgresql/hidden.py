"""Logins that hide: let in before their user's login was turned off, and kept from showing by their own start-up options.

Anyone may connect with `options='-c post_auth_delay=600 -c role=readers'`. The server checks the login, sleeps, and only then shows the
session under its user; it would read with the group's rights long after its user is gone. Until then nothing shows but the lock of its
transaction on itself, held by a process without a user. Ordinary logins look the same for some milliseconds.

Whose such a login is, the server tells nobody; but whom it lets end it, it does. A user may end its own sessions and those of roles
that it is a member of. So we act as the user, without its memberships where those lead to somebody who could log in, and try.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from broker.clock import stopwatch_s
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

PATIENCE_S = 1.0
"""For so long a login may be in progress before it is asked whose it is; an ordinary one takes milliseconds."""
_LIMIT_S = 2.0
_PAUSES_S = (0.002, 0.003, 0.005, 0.01, 0.02)
_ENDED = re.compile(r"broker ended (\d+) (\d+)")
_UNTOLD = re.compile(r"broker untold (\d+)")

log = structlog.get_logger(__name__)

Login = tuple[int, str]
"""Process id and virtual transaction: one attempt to log in."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of the users' hidden logins, by OID; who is in neither has none."""

    going: frozenset[int] = frozenset()
    """One of theirs goes on, though it was told to end."""
    untold: frozenset[int] = frozenset()
    """Somebody's login is in progress, and we could not act as the user to see whether it is theirs."""


class Hidden:
    """The logins in progress on one server, which the log calls `place`, and since when each has been seen."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._since_s: dict[Login, float] = {}

    async def end(self, session: Session, oids: Sequence[int]) -> Found:
        """Ends the hidden logins of the users of these OIDs and waits until they are seen gone; nobody else's.

        One query where nobody is just logging in. Must come before the look at the sessions: a login may show itself in between, and then
        counts as a session. Raises what the driver raises.
        """
        if not oids:
            return Found()
        begun_s = stopwatch_s()
        first = logins = await self._look(session)
        turns = itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1]))
        while any(self._young(login, begun_s) for login in logins):
            await asyncio.sleep(next(turns))
            logins = await self._look(session) & first
        return await self._tell_apart(session, oids, logins) if logins else Found()

    async def _tell_apart(self, session: Session, oids: Sequence[int], logins: set[Login]) -> Found:
        ended, untold = await _end_as_each(session, oids, [pid for pid, _ in logins])
        if ended:
            # Nobody does this by accident: whoever leased these users should be asked.
            log.warning(
                "ended logins that hid", place=self._place, identities=sorted(map(str, set(ended.values()))), logins=len(ended)
            )
        going = {login for login in logins if login[0] in ended}
        deadline_s = stopwatch_s() + _LIMIT_S
        while going and stopwatch_s() < deadline_s:
            await asyncio.sleep(_PAUSES_S[0])
            going &= await self._look(session)
        return Found(frozenset(ended[pid] for pid, _ in going), untold if logins & await self._look(session) else frozenset())

    def _young(self, login: Login, begun_s: float) -> bool:
        return stopwatch_s() - min(begun_s, self._since_s.get(login, begun_s)) < PATIENCE_S

    async def _look(self, session: Session) -> set[Login]:
        now_s = stopwatch_s()
        rows = await session.rows(QUERIES["logins_in_progress"])
        found = {(row["pid"], row["attempt"]) for row in rows}
        self._since_s = {login: self._since_s.get(login, now_s) for login in found}
        return found


async def remedy(session: Session, oid: int) -> tuple[str, ...]:
    """Statements, to be run by a superuser, after which it can be seen whether a login is the user's; none where that may pass by itself.

    Raises what the driver raises.
    """
    return tuple(row["statement"] for row in await session.rows(QUERIES["in_the_way"], oid))


async def _end_as_each(session: Session, oids: Sequence[int], pids: Sequence[int]) -> tuple[dict[int, int], frozenset[int]]:
    """Tries to end these processes as each of the users: which process was whose, and whom we could not act as."""
    ended: dict[int, int] = {}
    untold = set()
    for notice in await session.run(_block(oids, pids)):
        if match := _ENDED.fullmatch(notice.message):
            ended[int(match[2])] = int(match[1])
        elif match := _UNTOLD.fullmatch(notice.message):
            untold.add(int(match[1]))
    return ended, frozenset(untold)


def _block(oids: Sequence[int], pids: Sequence[int]) -> str:
    users, processes = ",".join(map(str, oids)), ",".join(map(str, pids))
    return QUERIES["end_as_each"].replace("USERS", users).replace("PROCESSES", processes)
