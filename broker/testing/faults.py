"""Faults for tests: servers that die, hang or restart, and an engine that something else may happen to first, so that it fails or waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from broker.engines.protocol import (
    Engine,
    Extension,
    Health,
    Lack,
    NewUser,
    Outcome,
    Password,
    Rehearsal,
    Seen,
    Standing,
    Swept,
    Traits,
    User,
)
from broker.model import Terms, UserName
from broker.secret import Secret
from broker.testing.broker import until
from broker.testing.postgresql import PostgresServer

Fault: TypeAlias = Callable[[PostgresServer], AbstractAsyncContextManager[None]]
"""Comes as the context begins, and is over with it."""
Before: TypeAlias = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def killed(server: PostgresServer) -> AsyncIterator[None]:
    """All of the server at once, as with its machine: nothing is written, nobody says good-bye. At the end it is started."""
    # Stopped, the main process starts nobody else while its others are counted.
    _tell(_processes(server)[:1], signal.SIGSTOP)
    dead = _processes(server)
    _tell(dead, signal.SIGKILL)
    await asyncio.to_thread(server.kill)

    async def buried() -> bool:
        return not any(_lives(pid) for pid in dead)

    await until(buried)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def frozen(server: PostgresServer) -> AsyncIterator[None]:
    """Connections stay open, new ones are accepted by the kernel, and nobody answers; then all goes on as if nothing had been."""
    freeze(server)
    try:
        yield
    finally:
        thaw(server)


@asynccontextmanager
async def restarted(server: PostgresServer) -> AsyncIterator[None]:
    """In order, and at once ("fast shutdown")."""
    await asyncio.to_thread(server.restart)
    yield


SERVER_FAULTS: Mapping[str, Fault] = {"killed": killed, "frozen": frozen, "restarted": restarted}


def freeze(server: PostgresServer) -> None:
    """Stops every process of a server, which must run: what it holds open stays open, and nothing answers."""
    _tell(_processes(server)[:1], signal.SIGSTOP)
    _tell(_processes(server)[1:], signal.SIGSTOP)


def thaw(server: PostgresServer) -> None:
    """Has a server that may be frozen go on."""
    _tell(_processes(server), signal.SIGCONT)


def _processes(server: PostgresServer) -> list[int]:
    """The server's main process, and all that it started."""
    main = int((server.directory / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
    found = [main]
    for entry in Path("/proc").iterdir():
        # A process may be gone by the time we read of it.
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and _stat(int(entry.name))[1] == str(main):
                found.append(int(entry.name))
    return found


def _tell(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _lives(pid: int) -> bool:
    """Whether there is still something of that process but its entry."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process (proc(5)): what follows its name, in which anything may stand."""
    return (Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


class Interposed:
    """Meets `Engine`: awaits `before(verb)` and then asks the engine inside. What `before` raises is the verb's answer."""

    def __init__(self, inner: Engine, before: Before) -> None:
        self._inner = inner
        self._before = before

    @property
    def traits(self) -> Traits:
        """See `Engine.traits`."""
        return self._inner.traits

    async def open(self) -> Health:
        """See `Engine.open`."""
        await self._before("open")
        return await self._inner.open()

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._before("close")
        await self._inner.close()

    async def health(self) -> Health:
        """See `Engine.health`."""
        await self._before("health")
        return await self._inner.health()

    def user_name(self, display_name: str, role: str) -> UserName:
        """See `Engine.user_name`."""
        return self._inner.user_name(display_name, role)

    async def new_password(self) -> Password:
        """See `Engine.new_password`."""
        await self._before("new_password")
        return await self._inner.new_password()

    def check_terms(self, terms: Terms) -> Sequence[str]:
        """See `Engine.check_terms`."""
        return self._inner.check_terms(terms)

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        await self._before("create")
        return await self._inner.create(order)

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """See `Engine.prepare`."""
        await self._before("prepare")
        return await self._inner.prepare(orders)

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.enable`."""
        await self._before("enable")
        return await self._inner.enable(extensions)

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.extend`."""
        await self._before("extend")
        return await self._inner.extend(extensions)

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.disable`."""
        await self._before("disable")
        return await self._inner.disable(users)

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.end_sessions`."""
        await self._before("end_sessions")
        return await self._inner.end_sessions(users)

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.release`."""
        await self._before("release")
        return await self._inner.release(users)

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.drop`."""
        await self._before("drop")
        return await self._inner.drop(users)

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.prove_absent`."""
        await self._before("prove_absent")
        return await self._inner.prove_absent(users)

    async def preflight(self, terms: Sequence[Terms]) -> Sequence[Lack]:
        """See `Engine.preflight`."""
        await self._before("preflight")
        return await self._inner.preflight(terms)

    async def rehearse(self, terms: Terms) -> Rehearsal:
        """See `Engine.rehearse`."""
        await self._before("rehearse")
        return await self._inner.rehearse(terms)

    def plain_terms(self) -> Terms:
        """See `Engine.plain_terms`."""
        return self._inner.plain_terms()

    async def log_in(self, user: User, password: Secret) -> None:
        """See `Engine.log_in`."""
        await self._before("log_in")
        await self._inner.log_in(user, password)

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """See `Engine.look_up`."""
        await self._before("look_up")
        return await self._inner.look_up(users)

    async def sweep(self) -> Sequence[Swept]:
        """See `Engine.sweep`."""
        await self._before("sweep")
        return await self._inner.sweep()

    async def abandoned(self) -> Sequence[Swept]:
        """See `Engine.abandoned`."""
        await self._before("abandoned")
        return await self._inner.abandoned()

    async def inspect(self) -> Sequence[str]:
        """See `Engine.inspect`."""
        await self._before("inspect")
        return await self._inner.inspect()

    async def list_users(self) -> AsyncIterator[Seen]:
        """See `Engine.list_users`."""
        await self._before("list_users")
        async for seen in self._inner.list_users():
            yield seen
