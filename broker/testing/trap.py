"""A trap for the broker: one of its statements is seen to wait on the server, so that a test knows where in its work the broker is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncpg

from broker.testing.broker import until
from broker.testing.postgresql import PostgresServer

_LIMIT_S = 60
WAITS = "SELECT min(pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
"""Who waits for a lock that the asking session holds."""


@dataclass(frozen=True, slots=True)
class Snare:
    """What the broker is caught at: the first statement of the engine's `verb` that needs what `lock` holds in `database`."""

    verb: str
    lock: str
    """A statement of the superuser; empty where the broker waits for something else, and `caught` tells."""
    database: str = "postgres"
    passes: int = 0
    """As many statements are let through before; each has committed when the next one waits."""
    caught: str = WAITS
    """The query by which the superuser finds the process that is caught; null while there is none."""


class Trap:
    """Takes a snare's lock once the broker begins the verb, and tells when a statement waits for it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._snare: Snare | None = None
        self._sprung: asyncio.Future[Snare] | None = None
        self._holder: Any = None

    def set(self, snare: Snare) -> None:
        """From now on the broker is caught when it comes there, once."""
        self._snare, self._sprung = snare, asyncio.get_running_loop().create_future()

    async def before(self, verb: str) -> None:
        """What the engine's verbs pass (see `Interposed`)."""
        snare = self._snare
        if snare is None or self._sprung is None or verb != snare.verb:
            return
        self._snare = None
        self._holder = await self._connect(snare)
        if snare.lock:
            await self._holder.execute(f"BEGIN; {snare.lock}")
        self._sprung.set_result(snare)

    async def caught(self) -> int:
        """The process id of who is caught, once somebody is; the trap has to be set. Raises `TimeoutError`."""
        if self._sprung is None:
            raise RuntimeError("the trap is not set")
        snare = await asyncio.wait_for(self._sprung, _LIMIT_S)
        for _ in range(snare.passes):
            await self._found(WAITS)
            await self._let_one_pass(snare)
        return await self._found(snare.caught)

    def open(self) -> None:
        """Lets go of the lock, where its session lives still."""
        if self._holder is not None:
            self._holder.terminate()

    async def _let_one_pass(self, snare: Snare) -> None:
        """Whoever waits goes on. We are next in the queue by then, so we have the lock when that one commits."""
        next_holder = await self._connect(snare)
        queued = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = $1"
        taking = asyncio.ensure_future(next_holder.execute(f"BEGIN; {snare.lock}"))
        await until(lambda: self._holder.fetchval(queued, next_holder.get_server_pid()), every_s=0.005)
        await self._holder.execute("ROLLBACK")
        self._holder.terminate()
        self._holder = next_holder
        await taking

    async def _found(self, query: str) -> int:
        found = 0

        async def one() -> bool:
            nonlocal found
            found = await self._holder.fetchval(query) or 0
            return bool(found)

        await until(one, every_s=0.005)
        return found

    async def _connect(self, snare: Snare) -> Any:
        return await asyncpg.connect(self._server.superuser_dsn(snare.database).reveal())
