"""Points that calls pass: there a test makes one fail, wait, do something first, or be the last that the process did."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

_FUTURES = ("record",)
"""Methods that are awaited, though they are no coroutines: they give a future."""


class Killed(BaseException):
    """The process is dead: nothing of it goes on."""


@dataclass(slots=True)
class Gate:
    """Where a call waits for the test."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Says that a call is here, and lets it wait until the gate is opened."""
        self.entered.set()
        await self.opened.wait()


class Points:
    """What is to happen at which point. A point is `before ROOM.METHOD` or `after ROOM.METHOD`."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.plans: dict[str, list[Callable[[], Awaitable[None]]]] = {}
        self.kill_at: int | None = None
        """How many more points are passed before the process dies."""
        self.dead = False

    async def at(self, point: str) -> None:
        """Every call passes here twice."""
        if self.dead:
            raise Killed
        self.passed.append(point)
        if self.kill_at is not None:
            self.kill_at -= 1
            if self.kill_at < 0:
                self.dead = True
                raise Killed
        for plan in list(self.plans.get(point, ())):
            await plan()

    def fail(self, point: str, error: Exception, times: int = 1_000_000) -> None:
        """Lets a call fail so many times, before or after it is carried out as `point` says."""
        left = [times]

        async def plan() -> None:
            if left[0]:
                left[0] -= 1
                raise error

        self.plans.setdefault(point, []).append(plan)

    def hold(self, point: str) -> Gate:
        """Lets calls wait there until the gate is opened."""
        gate = Gate()
        self.plans.setdefault(point, []).append(gate.wait)
        return gate

    def do(self, point: str, act: Callable[[], Any]) -> None:
        """Does something when a call gets there."""

        async def plan() -> None:
            answer = act()
            if inspect.isawaitable(answer):
                await answer

        self.plans.setdefault(point, []).append(plan)


class Hooked:
    """Anything whose methods that are awaited pass `at` before and after they are carried out."""

    def __init__(self, inner: Any, room: str, at: Callable[[str], Awaitable[None]]) -> None:
        self._inner, self._room, self._at = inner, room, at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found) and name not in _FUTURES:
            return found

        async def passing(*args: Any, **kwargs: Any) -> Any:
            await self._at(f"before {self._room}.{name}")
            answer = await found(*args, **kwargs)
            await self._at(f"after {self._room}.{name}")
            return answer

        return passing
