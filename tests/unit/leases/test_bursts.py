"""When a rise of live leases is told of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.leases.bursts import WINDOW_MS, Levels

ALARM = 800
LEAST = ALARM // 8
STEP_MS = 10_000
LOOKS_OF_A_WINDOW = WINDOW_MS // STEP_MS


def told(course: list[int], alarm: int = ALARM) -> list[tuple[int, int]]:
    """At which looks, ten seconds apart, a level that takes this course is told of, and by how much it had risen."""
    levels: Levels[str] = Levels(alarm)
    found = []
    for number, level in enumerate(course):
        live = {"app": level} if level >= levels.least else {}
        found += [(number, rise.by) for rise in levels.look(number * STEP_MS, live)]
    return found


def test_a_burst_is_told_once() -> None:
    """While it goes on, and stays where it got, nothing more is said."""
    course = [0, 300, 700, 950, 1_500, *range(2_000, 40_000, 100), *[40_000] * 2 * LOOKS_OF_A_WINDOW]
    assert told(course) == [(3, 950 - LEAST)]


def test_the_next_burst_is_told_again() -> None:
    """After a rest on the higher level, and after a fall."""
    rest = LOOKS_OF_A_WINDOW + 1
    assert [number for number, _ in told([0, *[1_000] * rest, *[2_000] * rest, *[300] * rest, 1_200])] == [
        1,
        rest + 1,
        3 * rest + 1,
    ]


def test_what_was_there_at_the_start_is_no_burst() -> None:
    """A restart tells of nothing that had piled up before, but of what comes after."""
    assert told([50_000] * 9) == []
    assert told([50_000, 50_000, 50_900]) == [(2, 900)]


def test_slow_growth_is_no_burst() -> None:
    """By less than the alarm within the window, whatever it comes to."""
    assert told([number * (ALARM - 1) // LOOKS_OF_A_WINDOW for number in range(10 * LOOKS_OF_A_WINDOW)]) == []


def test_each_holder_has_its_own_level() -> None:
    """One that does not rise hides none that does, and one that is gone is forgotten."""
    levels: Levels[str] = Levels(ALARM)
    assert levels.look(0, {"a": 5_000, "b": 5_000}) == []
    assert [rise.holder for rise in levels.look(STEP_MS, {"a": 5_000, "b": 5_900})] == ["b"]
    assert levels.look(2 * STEP_MS, {"a": 5_000}) == []
    assert [(rise.holder, rise.by) for rise in levels.look(3 * STEP_MS, {"a": 5_000, "b": 5_900})] == [("b", 5_900 - LEAST)]


def test_the_smallest_alarm_works() -> None:
    """A threshold of one lease is odd, but no mistake."""
    assert told([0, 1, 2, 2], alarm=1) == [(2, 1)]


@given(st.lists(st.integers(0, 3 * ALARM), min_size=1, max_size=40))
def test_what_is_told_did_rise_and_great_rises_are_told(course: list[int]) -> None:
    """Within a window: each rise that is told is real, and one by the alarm and what may be underrated is never passed over."""
    found = told(course)
    rises = [max(course[number] - low for low in course[: number + 1]) for number in range(len(course))]
    for number, by in found:
        assert ALARM <= by <= rises[number]
    if any(rise >= ALARM + LEAST for rise in rises):
        assert found
