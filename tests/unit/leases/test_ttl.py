"""How long a lease lives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.leases.ttl import Bounds, Ttl, jittered, resolve

HOUR, DAY = 3_600, 86_400
spans = st.integers(0, 10**7)
chances = st.floats(0, 1)


@pytest.mark.parametrize(
    ("increment", "bounds", "seconds", "capped_by", "warnings"),
    [
        (0, Bounds(default_s=HOUR, max_s=DAY), HOUR, "", 0),
        (60, Bounds(default_s=HOUR, max_s=DAY), 60, "", 0),
        (-5, Bounds(default_s=HOUR, max_s=DAY), HOUR, "", 0),
        (5 * HOUR, Bounds(default_s=HOUR, max_s=HOUR), HOUR, "max_ttl", 1),
        (0, Bounds(default_s=2 * HOUR, max_s=HOUR), HOUR, "max_ttl", 1),
        (0, Bounds(default_s=HOUR, max_s=DAY, age_s=DAY - 60), 60, "max_ttl", 1),
        (0, Bounds(default_s=HOUR, max_s=DAY, age_s=2 * DAY), 0, "max_ttl", 1),
        (0, Bounds(default_s=HOUR, max_s=DAY, token_left_s=60), 60, "token", 1),
        (0, Bounds(default_s=HOUR, max_s=DAY, token_left_s=HOUR), HOUR, "", 0),
        (0, Bounds(default_s=HOUR, max_s=DAY, token_left_s=-3), 0, "token", 1),
        (DAY * 2, Bounds(default_s=HOUR, max_s=DAY, token_left_s=60), 60, "token", 2),
    ],
)
def test_the_rules(increment: int, bounds: Bounds, seconds: int, capped_by: str, warnings: int) -> None:
    """Increment, else default; capped by what is left of the maximum and of the token, each cap with its warning."""
    ttl = resolve(increment, bounds)
    assert (ttl.seconds, ttl.capped_by, len(ttl.warnings)) == (seconds, capped_by, warnings)


def test_the_warning_is_vaults() -> None:
    """Clients read this text."""
    (told,) = resolve(5 * HOUR, Bounds(default_s=60, max_s=HOUR)).warnings
    assert told == 'TTL of "5h" exceeded the effective max_ttl of "1h"; TTL value is capped accordingly'


@given(st.integers(-100, 10**7), st.integers(1, 10**7), spans, spans, st.none() | st.integers(-100, 10**7))
def test_no_cap_is_ever_passed(increment: int, default: int, most: int, age: int, left: int | None) -> None:
    """Never negative, never over the maximum, the token or what was asked; warned of exactly when something was capped."""
    ttl: Ttl = resolve(increment, Bounds(default_s=default, max_s=most, age_s=age, token_left_s=left))
    wanted = increment if increment > 0 else default
    assert 0 <= ttl.seconds <= wanted
    assert ttl.seconds + age <= max(most, age)
    assert left is None or ttl.seconds <= max(0, left)
    assert (ttl.seconds < wanted) == bool(ttl.capped_by)
    assert bool(ttl.capped_by) == bool(ttl.warnings)


@pytest.mark.parametrize(
    ("ttl", "percent", "chance", "left", "shortened"),
    [
        (Ttl(100), 0, 0.99, 0, Ttl(100)),
        (Ttl(100), 10, 0.0, 0, Ttl(100)),
        (Ttl(100), 10, 0.5, 0, Ttl(95, "ttl_jitter")),
        (Ttl(100), 10, 0.999, 0, Ttl(90, "ttl_jitter")),
        (Ttl(100, "max_ttl", ("told",)), 50, 1.0, 0, Ttl(50, "max_ttl", ("told",))),
        (Ttl(100), 50, 1.0, 80, Ttl(80, "ttl_jitter")),
        (Ttl(100), 50, 1.0, 100, Ttl(100)),
        (Ttl(100), 50, 1.0, 101, Ttl(50, "ttl_jitter")),
        (Ttl(1), 50, 1.0, 0, Ttl(1)),
        (Ttl(3), 50, 1.0, 0, Ttl(2, "ttl_jitter")),
        (Ttl(0, "max_ttl"), 50, 1.0, 0, Ttl(0, "max_ttl")),
    ],
)
def test_jitter(ttl: Ttl, percent: int, chance: float, left: int, shortened: Ttl) -> None:
    """In whole seconds, up to the percentage; a renewal for more keeps what the lease has; another cap keeps its name."""
    assert jittered(ttl, percent, chance, left_s=left) == shortened


@given(spans, st.integers(0, 50), chances, chances, spans)
def test_jitter_only_shortens(seconds: int, percent: int, chance: float, other: float, left: int) -> None:
    """Never longer, never by more than the percentage, never below a second; a greater chance never makes it longer; told when it cut."""
    ttl = jittered(Ttl(seconds), percent, chance, left_s=left)
    assert min(1, seconds) <= ttl.seconds <= seconds
    assert ttl.seconds * 100 >= seconds * (100 - percent)
    assert ttl.seconds >= left or left > seconds
    assert (ttl.seconds < seconds) == (ttl.capped_by == "ttl_jitter")
    assert (ttl.seconds <= jittered(Ttl(seconds), percent, other, left_s=left).seconds) or other > chance
    assert jittered(Ttl(seconds), percent, 1).seconds <= jittered(Ttl(seconds), percent, chance).seconds
