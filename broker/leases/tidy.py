"""Tidy: tombstones past their time are deleted, deleted connections without leases erased."""

from __future__ import annotations

from broker.leases.parts import Parts
from broker.model import LeaseState

_A_TIME = 1_000
_EVERY_MS = 60_000


class Tidier:
    """Cleans up a minute apart, or when asked."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._next_ms = 0

    async def tick(self) -> bool:
        """One page of cleaning when its time has come; whether there is more."""
        now = self._parts.store.now_ms()
        if now < self._next_ms:
            return False
        if await self._parts.store.tidy(_A_TIME) == _A_TIME:
            return True
        await self._parts.catalog.purge_retired()
        self._parts.metrics.stuck_leases.set((await self._parts.store.tally())[LeaseState.STUCK])
        self._next_ms = now + _EVERY_MS
        return False

    def start(self) -> None:
        """Makes the next tick clean, whenever the last one was; leases whose token ended fall due by themselves."""
        self._next_ms = 0
        self._parts.wake_expiry()
