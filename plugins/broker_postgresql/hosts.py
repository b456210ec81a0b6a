"""Which of a connection's hosts is the one to work with: the one that takes writes; of several, the one with the highest timeline.

All are asked at once, each with its own time limit, so a silent one uses up nobody's time. The one that was found is kept until it
fails, or another one is seen to have taken over. A server whose timeline is behind one that was seen before was superseded, and is
never worked with again, whatever it says of itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import asyncpg

from broker.clock import stopwatch_s
from broker.errors import DatabaseUnavailable
from broker_postgresql.failures import first_line
from broker_postgresql.session import Session

_GRACE_S = 1.0
"""How long the others may still answer once one that takes writes has: a silent one is not waited for to the end of its limit."""
_LOOK_EVERY_S = 5.0
_SUPERSEDED = "the server was superseded: its timeline is {found}, and one with {known} was seen; where that is meant, reset the connection"
_TWO_WRITABLE = (
    "{host} takes writes as well, on timeline {found}, though {leader} was promoted over it (timeline {known}): stop it"
)
_SAME_LINE = "{host} takes writes as well, on the same timeline {found} as {leader}: two primaries; stop one of them"

Host: TypeAlias = tuple[str, int]
Connect: TypeAlias = Callable[[str, int], Awaitable[Session]]
_REFUSED = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DatabaseUnavailable)


class Hosts:
    """The hosts of one connection, in the order in which they were written, and which of them leads."""

    def __init__(self, hosts: Sequence[Host], where: str) -> None:
        self.timeline = 0
        """The highest that was seen; 0 while none was."""
        self.concerns: tuple[str, ...] = ()
        """See `Health.concerns`: hosts that take writes and must not."""
        self._hosts = tuple(dict.fromkeys(hosts))
        self._where = where
        self._leader: Host | None = None if len(self._hosts) > 1 else self._hosts[0]
        self._looked_s = 0.0

    def doubt(self) -> None:
        """Has the next connection ask all hosts."""
        if len(self._hosts) > 1:
            self._leader = None

    async def connect(self, connect: Connect) -> Session:
        """A connection to the host that leads. Raises `DatabaseUnavailable` that says what each host answered."""
        leader = self._leader
        if leader is not None:
            session = await self._try(connect, leader)
            if isinstance(session, Session):
                return session
            if len(self._hosts) == 1:
                raise self._nobody([session])
        return await self._elect(connect)

    async def look(self, connect: Connect) -> None:
        """Every few seconds: whether another host has taken over, or takes writes beside the one that leads. Never raises."""
        leader = self._leader
        if leader is None or len(self._hosts) == 1 or stopwatch_s() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = stopwatch_s()
        others = [host for host in self._hosts if host != leader]
        found, _ = await self._ask(connect, [leader, *others])
        for session in found.values():
            session.wire.terminate()
        if found:
            self._choose(found)

    async def _elect(self, connect: Connect) -> Session:
        found, refusals = await self._ask(connect, self._hosts)
        if not found:
            raise self._nobody(refusals)
        self._looked_s = stopwatch_s()
        chosen = self._choose(found)
        for host, session in found.items():
            if host != chosen:
                session.wire.terminate()
        return found[chosen]

    def _choose(self, found: dict[Host, Session]) -> Host:
        """The host with the highest timeline; of equals the one that leads already, else the one that was written first."""
        order = {host: (session.line.number, host == self._leader) for host, session in found.items()}
        chosen = max((host for host in self._hosts if host in found), key=order.__getitem__)
        self._leader, best = chosen, found[chosen]
        self.timeline = max(self.timeline, best.line.number)
        self.concerns = tuple(
            _concern(host, session, chosen, best)
            for host, session in found.items()
            if session.greeting.started != best.greeting.started
        )
        return chosen

    async def _ask(self, connect: Connect, hosts: Sequence[Host]) -> tuple[dict[Host, Session], list[str]]:
        """The connections to hosts that take writes, and what the others said."""
        tasks = {asyncio.ensure_future(self._try(connect, host, superseded=True)): host for host in hosts}
        found: dict[Host, Session] = {}
        refusals: list[str] = []
        pending, until_s = set(tasks), float("inf")
        try:
            while pending and (left_s := until_s - stopwatch_s()) > 0:
                done, pending = await asyncio.wait(
                    pending, timeout=None if left_s == float("inf") else left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    answer = task.result()
                    if isinstance(answer, Session):
                        found[tasks[task]] = answer
                        until_s = min(until_s, stopwatch_s() + _GRACE_S)
                    else:
                        refusals.append(answer)
        except BaseException:
            for session in found.values():
                session.wire.terminate()
            raise
        finally:
            for task in pending:
                task.cancel()
                task.add_done_callback(_discard)
        self._keep_one_cluster(found, refusals)
        behind = [host for host, session in found.items() if 0 < session.line.number < self.timeline]
        if behind and len(behind) == len(found):
            for host in behind:
                session = found.pop(host)
                session.wire.terminate()
                refusals.append(f"{_written(host)}: {_SUPERSEDED.format(found=session.line.number, known=self.timeline)}")
        return found, refusals

    def _keep_one_cluster(self, found: dict[Host, Session], refusals: list[str]) -> None:
        """Of servers of several clusters, those of the host that was written first: which answers first must not decide."""
        first = next((host for host in self._hosts if host in found), None)
        if first is None:
            return
        for host in [host for host, session in found.items() if session.cluster != found[first].cluster]:
            found.pop(host).wire.terminate()
            refusals.append(f"{_written(host)}: the server belongs to another database cluster than {_written(first)}")

    async def _try(self, connect: Connect, host: Host, *, superseded: bool = False) -> Session | str:
        """A connection, or why there is none; one to a superseded server only where that is wanted."""
        try:
            session = await connect(*host)
        except _REFUSED as error:
            return f"{_written(host)}: {first_line(error) or type(error).__name__}"
        if not superseded:
            if 0 < session.line.number < self.timeline:
                session.wire.terminate()
                return f"{_written(host)}: {_SUPERSEDED.format(found=session.line.number, known=self.timeline)}"
            self.timeline = max(self.timeline, session.line.number)
        return session

    def _nobody(self, refusals: Sequence[str]) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self._where}: no server to work with; {'; '.join(refusals)}")


def _concern(host: Host, session: Session, leader: Host, best: Session) -> str:
    text = _SAME_LINE if session.line.number == best.line.number else _TWO_WRITABLE
    return text.format(host=_written(host), leader=_written(leader), found=session.line.number, known=best.line.number)


def _written(host: Host) -> str:
    return f"{host[0]}:{host[1]}"


def _discard(task: asyncio.Future[Session | str]) -> None:
    """A connection that came too late is closed."""
    if not task.cancelled() and task.exception() is None and isinstance(answer := task.result(), Session):
        answer.wire.terminate()
