"""A connection to the host to work with, of several: all are asked at once, and `primary` says which of those that take writes it is.

Each has its own time limit, so a silent one uses up nobody's time. The one that was found is kept until it fails, or another one is seen
to have taken over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import asyncpg

from broker.clock import stopwatch_s
from broker.errors import DatabaseUnavailable
from broker_postgresql.failures import first_line
from broker_postgresql.primary import Choice, Host, Known, Server, choose, written
from broker_postgresql.session import Session

_GRACE_S = 1.0
"""How long the others may still answer once one that takes writes has: a silent one is not waited for to the end of its limit."""
_LOOK_EVERY_S = 5.0

Connect: TypeAlias = Callable[[str, int], Awaitable[Session]]
_REFUSED = (
    OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, DatabaseUnavailable,
)  # fmt: skip
"""What makes a host one that does not answer, a server of another kind for one."""


class Hosts:
    """The hosts of one connection, in the order in which they were written, and which of them leads."""

    def __init__(self, hosts: Sequence[Host], where: str, known: Known) -> None:
        self.concerns: tuple[str, ...] = ()
        """See `Health.concerns`: hosts that take writes and must not."""
        self._hosts = tuple(dict.fromkeys(hosts))
        self._where = where
        self._leader: Host | None = None if len(self._hosts) > 1 else self._hosts[0]
        self._names: tuple[Host, ...] = ()
        self._remembered = known
        """What an earlier process left behind."""
        self._known = known
        self._looked_s = 0.0

    @property
    def timeline(self) -> int:
        """The highest that was seen; 0 while none was."""
        return self._known.timeline

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `Health.addresses`."""
        return tuple(written(host) for host in self._names) if len(self._hosts) > 1 else ()

    @property
    def others(self) -> tuple[str, ...]:
        """See `Health.others`."""
        return tuple(written(host) for host in self._hosts if host not in self._names) if self.addresses else ()

    def doubt(self) -> None:
        """Has the next connection ask all hosts."""
        if len(self._hosts) > 1:
            self._leader = None

    def forget(self) -> None:
        """Unlearns what was found by this process: the server may have been refused."""
        self.doubt()
        self._known, self._names, self.concerns = self._remembered, (), ()

    async def connect(self, connect: Connect) -> Session:
        """A connection to the host that leads. Raises `DatabaseUnavailable` that says what each host answered."""
        leader = self._leader
        if leader is not None:
            answer = await self._try(connect, leader)
            found, refusals = ({leader: answer}, []) if isinstance(answer, Session) else ({}, [answer])
            choice = self._choose(found)
            if choice.leader:
                self._known = choice.known
                return found[leader]
            _terminate(found)
            if len(self._hosts) == 1:
                raise self._nobody([*refusals, *_told(choice)])
        return await self._elect(connect)

    async def look(self, connect: Connect) -> None:
        """Every few seconds: whether another host has taken over, or takes writes beside the one that leads. Never raises."""
        leader = self._leader
        if leader is None or len(self._hosts) == 1 or stopwatch_s() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = stopwatch_s()
        found, _ = await self._ask(connect)
        _terminate(found)
        self._take_in(self._choose(found))

    async def _elect(self, connect: Connect) -> Session:
        self.doubt()
        found, refusals = await self._ask(connect)
        self._looked_s = stopwatch_s()
        choice = self._choose(found)
        self._take_in(choice)
        chosen = found.pop(choice.leader[0]) if choice.leader else None
        _terminate(found)
        if chosen is None:
            raise self._nobody([*refusals, *_told(choice)])
        return chosen

    def _choose(self, found: Mapping[Host, Session]) -> Choice:
        """In the order in which the hosts were written, whoever answered first."""
        servers = {host: Server(found[host].line.number, found[host].greeting.started) for host in self._hosts if host in found}
        return choose(servers, self._known) if servers else Choice((), self._known, {}, ())

    def _take_in(self, choice: Choice) -> None:
        """What came of asking all hosts. Whoever leads does so further while no host with a higher timeline answers."""
        self._known = choice.known
        if choice.leader:
            self._leader, self._names, self.concerns = choice.leader[0], choice.leader, choice.concerns
        elif choice.refusals:
            self.concerns = _told(choice)

    async def _ask(self, connect: Connect) -> tuple[dict[Host, Session], list[str]]:
        """The connections to hosts that take writes, and what the others said."""
        tasks = {asyncio.ensure_future(self._try(connect, host)): host for host in self._hosts}
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
            for task in tasks:
                task.add_done_callback(_discard)
            raise
        finally:
            for task in pending:
                task.cancel()
                task.add_done_callback(_discard)
        self._keep_one_cluster(found, refusals)
        return found, refusals

    def _keep_one_cluster(self, found: dict[Host, Session], refusals: list[str]) -> None:
        """Of servers of several clusters, those of the host that was written first: which answers first must not decide."""
        first = next((host for host in self._hosts if host in found), None)
        if first is None:
            return
        for host in [host for host, session in found.items() if session.cluster != found[first].cluster]:
            found.pop(host).wire.terminate()
            refusals.append(f"{written(host)}: the server belongs to another database cluster than {written(first)}")

    async def _try(self, connect: Connect, host: Host) -> Session | str:
        """A connection, or why there is none."""
        try:
            return await connect(*host)
        except _REFUSED as error:
            return f"{written(host)}: {first_line(error) or type(error).__name__}"

    def _nobody(self, refusals: Sequence[str]) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"{self._where}: no server to work with; {'; '.join(refusals)}")


def _told(choice: Choice) -> tuple[str, ...]:
    return tuple(f"{written(host)}: {why}" for host, why in choice.refusals.items())


def _terminate(found: Mapping[Host, Session]) -> None:
    for session in found.values():
        session.wire.terminate()


def _discard(task: asyncio.Future[Session | str]) -> None:
    """A connection that came too late is closed."""
    if not task.cancelled() and task.exception() is None and isinstance(answer := task.result(), Session):
        answer.wire.terminate()
