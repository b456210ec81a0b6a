"""When to leave a database alone that does not answer. Pure: time and chance come in, nothing is awaited.

    closed --failures in a row--> open --its time is over, one call goes ahead as the probe--> half open
       ^                            ^                                                          |   |
       |                            '--------------------- the probe fails, time doubles ------'   |
       '------------------------------------------ the probe succeeds -----------------------------'

Every change of state makes the permits given before it void: what a call of a former state has to report is old news.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from broker.engines.settings import BreakerSettings


class State(StrEnum):
    """What the breaker lets through: everything, nothing, or a single probe that is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call; it is given back by exactly one of `succeeded`, `failed` and `given_up`."""

    period: int
    probe: bool


class Breaker:
    """The breaker of one connection. Times are milliseconds on one clock that never goes back."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._state = State.CLOSED
        self._period = 0
        self._failures = 0
        self._openings = 0
        self._until_ms = 0

    @property
    def state(self) -> State:
        """Where it stands; `OPEN` also when its time is over and nobody has asked since."""
        return self._state

    def admit(self, now_ms: int) -> Permit | None:
        """A permit, or None while the database is left alone. Once the time is over, the one who asks gets the probe."""
        if self._state is State.OPEN and now_ms >= self._until_ms:
            self._enter(State.HALF_OPEN)
            return Permit(self._period, probe=True)
        return Permit(self._period, probe=False) if self._state is State.CLOSED else None

    def wait_ms(self, now_ms: int) -> int:
        """How long it makes no sense to ask again: never negative, 0 while a probe is under way or calls are let through."""
        return max(0, self._until_ms - now_ms) if self._state is State.OPEN else 0

    def succeeded(self, permit: Permit) -> None:
        """The database answered, if only to refuse."""
        if permit.period != self._period:
            return
        self._failures = 0
        if permit.probe:
            self._openings = 0
            self._enter(State.CLOSED)

    def failed(self, permit: Permit, now_ms: int, chance: float) -> None:
        """The database was unavailable. `chance`, in [0, 1), spreads the open time over the upper half of its length."""
        if permit.period != self._period:
            return
        self._failures += 1
        if permit.probe or self._failures >= self._settings.failures:
            self._until_ms = now_ms + self._open_ms(chance)
            self._openings += 1
            self._enter(State.OPEN)

    def given_up(self, permit: Permit) -> None:
        """The call ended without telling anything of the database, e.g. cancelled; if it was the probe, the next caller is."""
        if permit.probe and permit.period == self._period:
            self._enter(State.OPEN)

    def _open_ms(self, chance: float) -> int:
        # The exponent is bounded: a database that is down for a month would overflow the float.
        span_s = min(self._settings.longest_open_s, self._settings.first_open_s * 2.0 ** min(self._openings, 32))
        return int(span_s * 500 * (1 + chance))

    def _enter(self, state: State) -> None:
        self._state = state
        self._period += 1
        self._failures = 0
