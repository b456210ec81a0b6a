"""Who asks the same question takes turns: of two equal requests in flight the second hears the first one's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    interested: int = 0


class Turns:
    """One turn at a time for each key; keys that nobody asks for take no memory."""

    def __init__(self) -> None:
        self._turns: dict[bytes, _Turn] = {}

    @asynccontextmanager
    async def take(self, key: bytes) -> AsyncIterator[None]:
        """Holds the key's turn, first come first served."""
        turn = self._turns.setdefault(key, _Turn())
        turn.interested += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.interested -= 1
            if not turn.interested:
                del self._turns[key]
