"""Watches the gap between the machine's wall clock and broker time: a jump is logged, audited and counted, never acted on."""

from __future__ import annotations

import structlog

from broker.clock import Clock
from broker.leases import records
from broker.leases.parts import Parts

_TOLERANCE_MS = 60_000

log = structlog.get_logger(__name__)


class ClockWatch:
    """Remembers the gap that it last told of."""

    def __init__(self, parts: Parts, clock: Clock) -> None:
        self._parts = parts
        self._clock = clock
        self._told_ms = 0

    async def look(self) -> None:
        """Compares the clocks. Raises `AuditUnavailable`; the jump is then told of at the next look."""
        gap_ms = self._clock.wall_ms() - self._clock.now_ms()
        self._parts.metrics.clock_gap.set(gap_ms / 1_000)
        if abs(gap_ms - self._told_ms) < _TOLERANCE_MS:
            return
        log.warning("the wall clock was set; leases go by broker time", wall_ahead_s=gap_ms / 1_000)
        request = records.new_request("clock", "sys/clock", {"wall_ahead_ms": gap_ms})
        await self._parts.trail.record([records.request_entry(self._parts.scribe, self._parts.store.now_ms(), request)])
        self._parts.metrics.clock_jumps.inc()
        self._told_ms = gap_ms
