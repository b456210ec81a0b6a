"""What time it is. Nothing else in the project reads a clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Broker time: Unix time in whole milliseconds that never goes back."""

    def now_ms(self) -> int:
        """The present moment, in Unix milliseconds."""
        ...

    def wall_ms(self) -> int:
        """What the machine's own wall clock says, in Unix milliseconds; for comparison only, it may jump."""
        ...

    def raise_to(self, floor_ms: int) -> None:
        """From now on, time never stands below `floor_ms`; does nothing when it is above it already."""
        ...


class SystemClock:
    """The wall clock at start plus the boot-time clock since.

    `CLOCK_BOOTTIME` (Linux, clock_gettime(2)) counts suspension and can't be set, so a wall clock that is set while the
    broker runs neither ends all leases nor brings one back. The gap is `wall_ms() - now_ms()`.
    """

    __slots__ = ("_offset_ms",)

    def __init__(self) -> None:
        self._offset_ms = 0
        self._offset_ms = self.wall_ms() - self.now_ms()

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + self._offset_ms

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return time.time_ns() // 1_000_000

    def raise_to(self, floor_ms: int) -> None:
        """See `Clock.raise_to`."""
        self._offset_ms += max(0, floor_ms - self.now_ms())


def stopwatch_s() -> float:
    """Seconds on a clock that only measures spans (monotonic); its zero means nothing."""
    return time.perf_counter()
