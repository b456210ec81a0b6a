"""Backlog: how far revocation is behind, known to whoever asks without asking the store each time."""

from __future__ import annotations

from dataclasses import dataclass

from broker.leases.parts import Parts

COUNTED_MOST = 10_000
"""No more are counted: what a look costs then stays small, however much waits."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """Leases that should be gone and are not, stuck ones left out: how many, `COUNTED_MOST` at most, and how late the oldest is."""

    count: int = 0
    oldest_s: int = 0


class BacklogWatch:
    """Looks once a second."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.overdue = Overdue()
        """As of the last look."""

    async def look(self) -> None:
        """Counts anew, for health checks and metrics. Raises `StoreUnavailable`; the last figures then stand."""
        store, metrics = self._parts.store, self._parts.metrics
        backlog = await store.backlog(at_most=COUNTED_MOST)
        late_ms = 0 if backlog.oldest_ms is None else max(0, store.now_ms() - backlog.oldest_ms)
        self.overdue = Overdue(backlog.count, late_ms // 1_000)
        metrics.revocations_overdue.set(backlog.count)
        metrics.oldest_overdue.set(late_ms / 1_000)
