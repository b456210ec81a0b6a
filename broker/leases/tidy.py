"""Tidy: tombstones past their time are deleted, deleted connections without leases erased, stuck leases counted."""

from __future__ import annotations

from broker.leases.parts import Parts
from broker.model import LeaseNumber, LeaseState

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
        await self._tell_of_stuck()
        self._next_ms = now + _EVERY_MS
        return False

    async def _tell_of_stuck(self) -> None:
        store, metrics, stuck = self._parts.store, self._parts.metrics, (LeaseState.STUCK,)
        # The first to be issued, since thousands are opened one by one: where so many are stuck, the age is one of many alarms.
        leases = await store.leases_in(stuck, after=LeaseNumber(0), limit=_A_TIME)
        now = store.now_ms()
        since = min((lease.facts.failing_since_ms or now for lease in leases), default=now)
        metrics.stuck_leases.set((await store.tally(states=stuck))[LeaseState.STUCK])
        metrics.oldest_stuck.set((now - since) / 1_000)

    def start(self) -> None:
        """Makes the next tick clean, whenever the last one was; leases whose token ended fall due by themselves."""
        self._next_ms = 0
        self._parts.wake_expiry()
