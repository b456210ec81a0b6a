"""Time limits for many short pieces of work, looked after by one timer.

A timer for each would cost a request of a few hundred microseconds more than its token and its audit entries together.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

_GRAIN_S = 0.25
"""How late a limit may strike."""


class Deadlines:
    """Limits on tasks of one event loop, kept to a quarter of a second. Its timer runs only while there is a limit."""

    __slots__ = ("_limits", "_loop", "_sweeping")

    def __init__(self) -> None:
        self._limits: set[Deadline] = set()
        self._sweeping = False
        self._loop = asyncio.get_running_loop()

    def within(self, seconds: float) -> Deadline:
        """A block that the current task has to leave within so many seconds: `with deadlines.within(30): await ...`.

        Past that the task is cancelled at what it awaits, and the block raises `TimeoutError`, as `asyncio.timeout` does.
        """
        return Deadline(self, self._loop, self._loop.time() + seconds)

    def add(self, limit: Deadline) -> None:
        """Looks after a limit from now on."""
        self._limits.add(limit)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_GRAIN_S, self._sweep)

    def remove(self, limit: Deadline) -> None:
        """Its block was left."""
        self._limits.discard(limit)

    def _sweep(self) -> None:
        now = self._loop.time()
        for limit in [limit for limit in self._limits if limit.when <= now]:
            self._limits.discard(limit)
            limit.strike()
        self._sweeping = bool(self._limits)
        if self._sweeping:
            self._loop.call_later(_GRAIN_S, self._sweep)


class Deadline:
    """One limit, on the task that enters it."""

    __slots__ = ("_cancelling", "_deadlines", "_loop", "_struck", "_task", "when")

    def __init__(self, deadlines: Deadlines, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self.when = when
        self._deadlines = deadlines
        self._loop = loop
        self._struck = False
        self._cancelling = 0
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task(self._loop)
        if self._task is None:
            raise RuntimeError("a deadline is for a task")
        self._cancelling = self._task.cancelling()
        self._deadlines.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadlines.remove(self)
        # As asyncio.Timeout decides it: a cancellation that somebody else asked for as well stays one.
        if (
            self._struck
            and self._task is not None
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    def strike(self) -> None:
        """Its time is up: cancels the task."""
        self._struck = True
        if self._task is not None:
            self._task.cancel()
