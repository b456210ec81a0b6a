"""The breaker: what opens it, how long, and that one probe alone goes ahead."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from broker.engines.breaker import Breaker, Permit, State
from broker.engines.settings import BreakerSettings

SETTINGS = BreakerSettings(failures=3, first_open_s=1, longest_open_s=8)


def admitted(breaker: Breaker, now_ms: int) -> Permit:
    """A permit that must be given."""
    permit = breaker.admit(now_ms)
    assert permit is not None
    return permit


def opened(now_ms: int = 0, chance: float = 0.0) -> Breaker:
    """A breaker that three failures have just opened."""
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(admitted(breaker, now_ms), now_ms, chance)
    assert breaker.state is State.OPEN
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    """A success between failures starts the count anew."""
    breaker = Breaker(SETTINGS)
    for _ in range(4):
        for _ in range(2):
            breaker.failed(admitted(breaker, 0), 0, 0.0)
        breaker.succeeded(admitted(breaker, 0))
    assert breaker.state is State.CLOSED


def test_open_lets_nothing_through_until_its_time() -> None:
    """It refuses to the last millisecond, says how long, and then lets one call through."""
    breaker = opened(now_ms=1_000)
    assert breaker.admit(1_499) is None
    assert breaker.wait_ms(1_100) == 400
    assert admitted(breaker, 1_500).probe


def test_one_probe_at_a_time() -> None:
    """While the probe is under way nobody else gets through."""
    breaker = opened()
    admitted(breaker, 500)
    assert breaker.admit(500) is None
    assert breaker.admit(1_000_000) is None
    assert breaker.wait_ms(1_000_000) == 0


def test_probe_closes_it() -> None:
    """A probe that succeeds lets all through again, and the next opening is as short as the first."""
    breaker = opened()
    breaker.succeeded(admitted(breaker, 500))
    assert breaker.state is State.CLOSED
    for _ in range(3):
        breaker.failed(admitted(breaker, 600), 600, 0.0)
    assert breaker.wait_ms(600) == 500


@pytest.mark.parametrize(
    ("chance", "waits"), [(0.0, [500, 1_000, 2_000, 4_000, 4_000]), (0.999, [999, 1_999, 3_998, 7_996, 7_996])]
)
def test_open_time_doubles_up_to_its_cap(chance: float, waits: list[int]) -> None:
    """Each probe that fails doubles the time, up to the longest; chance spreads it over the upper half."""
    breaker, now_ms, seen = opened(chance=chance), 0, []
    for _ in waits:
        seen.append(breaker.wait_ms(now_ms))
        now_ms += seen[-1]
        breaker.failed(admitted(breaker, now_ms), now_ms, chance)
    assert seen == waits


def test_open_time_does_not_overflow() -> None:
    """A database that is down for months is still asked at the longest time."""
    breaker, now_ms = opened(), 0
    for _ in range(5_000):
        now_ms += breaker.wait_ms(now_ms)
        breaker.failed(admitted(breaker, now_ms), now_ms, 0.0)
    assert breaker.wait_ms(now_ms) == 4_000


def test_abandoned_probe_leaves_the_place_to_the_next() -> None:
    """A probe that was cancelled says nothing; the next caller is the probe at once."""
    breaker = opened()
    breaker.given_up(admitted(breaker, 500))
    assert breaker.state is State.OPEN
    assert admitted(breaker, 500).probe


@pytest.mark.parametrize("late", ["succeeded", "failed", "given_up"])
def test_late_news_changes_nothing(late: str) -> None:
    """A call from before the opening reports in vain, whenever it ends: the probe alone decides."""
    breaker = Breaker(SETTINGS)
    old = admitted(breaker, 0)
    for _ in range(3):
        breaker.failed(admitted(breaker, 0), 0, 0.0)
    report = {
        "succeeded": lambda: breaker.succeeded(old),
        "failed": lambda: breaker.failed(old, 400, 0.0),
        "given_up": lambda: breaker.given_up(old),
    }[late]
    report()
    assert (breaker.state, breaker.wait_ms(0)) == (State.OPEN, 500)
    probe = admitted(breaker, 500)
    report()
    assert breaker.state is State.HALF_OPEN
    breaker.succeeded(probe)
    for _ in range(5):
        report()
    assert breaker.state is State.CLOSED


def test_permit_given_back_twice_counts_once() -> None:
    """A probe that was settled can't shut or open anything again."""
    breaker = opened()
    probe = admitted(breaker, 500)
    breaker.succeeded(probe)
    breaker.given_up(probe)
    breaker.failed(probe, 500, 0.0)
    assert breaker.state is State.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order while time goes on; a plain model says what must be seen."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(SETTINGS)
        self.now_ms = 0
        self.probe: Permit | None = None
        self.opened_ms = 0

    @rule(by_ms=st.integers(0, 10_000))
    def pass_time(self, by_ms: int) -> None:
        """Time goes on."""
        self.now_ms += by_ms

    @rule(target=permits)
    def begin(self) -> Permit:
        """Somebody asks; refused calls leave a permit that is void everywhere."""
        before, wait_ms = self.breaker.state, self.breaker.wait_ms(self.now_ms)
        permit = self.breaker.admit(self.now_ms)
        if before is State.CLOSED:
            assert permit is not None
            assert not permit.probe
        elif before is State.HALF_OPEN or wait_ms > 0:
            assert permit is None
        else:
            assert permit is not None
            assert permit.probe
            self.probe = permit
        return permit or Permit(-1, probe=False)

    @rule(permit=consumes(permits))
    def succeed(self, permit: Permit) -> None:
        """A call was answered."""
        before = self.breaker.state
        self.breaker.succeeded(permit)
        assert self.breaker.state is (State.CLOSED if self.ends_probe(permit) else before)

    @rule(permit=consumes(permits), chance=st.floats(0, 1, exclude_max=True))
    def fail(self, permit: Permit, chance: float) -> None:
        """A call found the database unavailable."""
        before = self.breaker.state
        self.breaker.failed(permit, self.now_ms, chance)
        if self.ends_probe(permit) or self.breaker.state is not before:
            assert self.breaker.state is State.OPEN
            assert 500 <= self.breaker.wait_ms(self.now_ms) <= 8_000

    @rule(permit=consumes(permits))
    def give_up(self, permit: Permit) -> None:
        """A call was cancelled."""
        before = self.breaker.state
        self.breaker.given_up(permit)
        assert self.breaker.state is (State.OPEN if self.ends_probe(permit) else before)

    def ends_probe(self, permit: Permit) -> bool:
        """Whether this was the probe under way."""
        if permit is not self.probe:
            return False
        self.probe = None
        return True

    @invariant()
    def half_open_is_a_probe_under_way(self) -> None:
        """Half open means just that one probe is out."""
        assert (self.breaker.state is State.HALF_OPEN) == (self.probe is not None)

    @invariant()
    def never_shut_for_ever(self) -> None:
        """Without a probe under way, waiting as long as it says always gets somebody through."""
        assert 0 <= self.breaker.wait_ms(self.now_ms) <= 8_000


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
