"""Bursts: live leases of one role or token that pile up much faster than they end, told once.

Typically an application that asks for a lease where it should keep one: per job, per request. The counts are those that the
store keeps for its limits, read beside the hot path; a limit would stop it, this only says it in time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from broker.leases.parts import Parts
from broker.model import NO_TOKEN, TokenNumber

WINDOW_MS = 3_600_000
"""An alarm is of leases that came within this time, and were still there."""
_EVERY_MS = 10_000
_TOKENS_A_TIME = 5_000

Holder = TypeVar("Holder", bound=Hashable)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Level:
    """The lowest levels of the half window before and of the present one, and whether the rise from there was told."""

    before: int
    now: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Rise(Generic[Holder]):
    """A level that rose by so much within the window."""

    holder: Holder
    live: int
    by: int


class Levels(Generic[Holder]):
    """Tells rises of `alarm` or more within the window, each once: of a holder again after it rose by less than half of that."""

    def __init__(self, alarm: int) -> None:
        self._alarm = alarm
        self.least = max(1, alarm // 8)
        """Levels below this need not be shown: it bounds what is kept, and by so much at most a rise from nothing is underrated."""
        self._levels: dict[Holder, _Level] = {}
        self._half_since_ms: int | None = None

    def look(self, now_ms: int, live: Mapping[Holder, int]) -> list[Rise[Holder]]:
        """What to tell of, given every holder's level of `least` or more."""
        begun = self._half_since_ms is not None
        # Where a holder stood before it was seen is not known at the first look, and was below `least` at any other.
        fresh = {holder: self.least if begun else level for holder, level in live.items() if holder not in self._levels}
        self._levels = {holder: self._levels.get(holder) or _Level(fresh[holder], fresh[holder]) for holder in live}
        turn = self._half_since_ms is None or now_ms - self._half_since_ms >= WINDOW_MS // 2
        if turn:
            self._half_since_ms = now_ms
        return [rise for holder, level in live.items() if (rise := self._rise(holder, level, turn=turn)) is not None]

    def _rise(self, holder: Holder, live: int, *, turn: bool) -> Rise[Holder] | None:
        known = self._levels[holder]
        known.now = min(known.now, live)
        by = live - min(known.before, known.now)
        if turn:
            known.before, known.now = known.now, live
        if by < self._alarm:
            known.told = known.told and 2 * by >= self._alarm
            return None
        told, known.told = known.told, True
        return None if told else Rise(holder, live, by)


class BurstWatch:
    """Looks at every role and token in turn, a page of tokens at a time, and begins anew every ten seconds."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        alarm = parts.settings.burst_alarm
        self._paths: Levels[str] = Levels(alarm)
        self._tokens: Levels[TokenNumber] = Levels(alarm)
        self._seen: dict[TokenNumber, int] = {}
        self._next = NO_TOKEN
        self._begin_ms = 0

    async def look(self) -> None:
        """One page. Logs and counts what piles up. Raises `StoreUnavailable`; the page is then read again."""
        parts, now_ms = self._parts, self._parts.store.now_ms()
        if not parts.settings.burst_alarm or (self._next == NO_TOKEN and now_ms < self._begin_ms):
            return
        if self._next == NO_TOKEN:
            self._tell_paths(self._paths.look(now_ms, await parts.store.crowded_paths(self._paths.least)))
            self._begin_ms = now_ms + _EVERY_MS
        page = await parts.store.crowded_tokens(self._tokens.least, after=self._next, limit=_TOKENS_A_TIME)
        self._seen |= page.live
        self._next = page.last or NO_TOKEN
        if page.last is None:
            seen, self._seen = self._seen, {}
            await self._tell_tokens(self._tokens.look(now_ms, seen))

    def _tell_paths(self, rises: Sequence[Rise[str]]) -> None:
        for rise in rises:
            self._parts.metrics.lease_bursts.labels("role").inc()
            log.warning("live leases of a role pile up", path=rise.holder, live=rise.live, within_an_hour=rise.by)

    async def _tell_tokens(self, rises: Sequence[Rise[TokenNumber]]) -> None:
        for rise in rises:
            self._parts.metrics.lease_bursts.labels("token").inc()
            token = await self._parts.store.token(rise.holder)
            who = {} if token is None else {"accessor": token.facts.accessor, "display_name": token.facts.display_name}
            log.warning("live leases of a token pile up", **who, live=rise.live, within_an_hour=rise.by)
