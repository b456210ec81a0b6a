"""A broker that dies at a named step: `victim.py CONFIG [ROOM.METHOD.before|after COUNT]`.

The step is planted from outside, through the seams of the daemon's builder: `engine.create.after 3` kills the process right
after the third `create` of any engine has returned, before anybody else hears of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from broker import config, daemon, log


class Deadly:
    """Passes everything on to `inner`; the `count`-th call of `method` kills the process before or after it."""

    def __init__(self, inner: Any, method: str, moment: str, count: list[int]) -> None:
        self._inner = inner
        self._method = method
        self._moment = moment
        self._count = count

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name != self._method or not iscoroutinefunction(attribute):
            return attribute
        return self._armed(attribute)

    def _armed(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(call)
        async def armed(*args: Any, **kwargs: Any) -> Any:
            self._count[0] -= 1
            last = self._count[0] == 0
            if last and self._moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await call(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return armed


def seams(step: str, count: int) -> daemon.Seams:
    """Seams that kill at the step."""
    room, method, moment = step.split(".")
    left = [count]

    def deadly(inner: Any) -> Any:
        return Deadly(inner, method, moment, left)

    return daemon.Seams(store=deadly) if room == "store" else daemon.Seams(engine=deadly)


def main() -> None:
    """Serves until it is killed."""
    settings = config.load(Path(sys.argv[1]))
    log.configure(settings.log)
    planted = seams(sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else None
    asyncio.run(daemon.serve(settings, planted))


main()
