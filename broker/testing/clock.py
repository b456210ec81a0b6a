"""A clock that a test moves."""

from __future__ import annotations

_START_MS = 1_790_000_000_000


class ManualClock:
    """Meets `Clock`: broker time stands until `advance` moves it; the wall clock goes along, `wall_ahead_ms` ahead of it."""

    def __init__(self, now_ms: int = _START_MS) -> None:
        self._now_ms = now_ms
        self.wall_ahead_ms = 0

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._now_ms

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return self._now_ms + self.wall_ahead_ms

    def raise_to(self, floor_ms: int) -> None:
        """See `Clock.raise_to`."""
        self._now_ms = max(self._now_ms, floor_ms)

    def advance(self, by_ms: int) -> None:
        """Lets so many milliseconds pass."""
        self._now_ms += by_ms
