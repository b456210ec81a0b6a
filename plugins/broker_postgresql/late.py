"""Statements that may arrive late: the backends of calls that were given up, and those of dead processes of this broker.

A server goes on with what it received, whether or not the one who sent it still listens. So before a user counts as absent,
such backends are ended and seen gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg

from broker.clock import stopwatch_s
from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker_postgresql.connector import application_name
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Greeting, Session

_LIMIT_S = 5.0
_PAUSE_S = 0.02


class Late:
    """Backends that were given up, until they are seen gone."""

    def __init__(self) -> None:
        self._backends: set[tuple[int, datetime]] = set()
        self._earlier_boots_gone = False

    def note(self, greeting: Greeting) -> None:
        """Remembers the backend of a connection that was cut."""
        self._backends.add((greeting.pid, greeting.backend_start))

    @property
    def pending(self) -> bool:
        """Whether some were not yet seen gone."""
        return bool(self._backends)

    async def settle(self, session: Session, origin: Origin) -> None:
        """Ends all late backends over `session` and waits until they are gone, those of earlier boots once per engine.

        Raises `DatabaseUnavailable` while one still runs.
        """
        if not self._earlier_boots_gone:
            patterns = (starting_with(f"broker/{origin.broker}/"), application_name(origin))
            await _until_none(lambda: session.rows(QUERIES["terminate_earlier_boots"], *patterns))
            self._earlier_boots_gone = True
        if self._backends:
            backends = sorted(self._backends)
            pids, starts = [pid for pid, _ in backends], [start for _, start in backends]
            await _until_none(lambda: session.rows(QUERIES["terminate_backends"], pids, starts))
            self._backends.difference_update(backends)


async def _until_none(ask: Callable[[], Awaitable[list[asyncpg.Record]]]) -> None:
    deadline = stopwatch_s() + _LIMIT_S
    while await ask():
        if stopwatch_s() > deadline:
            raise DatabaseUnavailable("statements of earlier calls are still running on the server; they were told to end")
        await asyncio.sleep(_PAUSE_S)


def starting_with(prefix: str) -> str:
    """The LIKE pattern of texts that begin with `prefix`."""
    escaped = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"{escaped}%"
