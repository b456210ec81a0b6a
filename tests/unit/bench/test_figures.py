"""Figures, medians and ratios."""

from __future__ import annotations

import pytest

from broker.bench.figures import Figure, p50_ratio, rate_ratio, summarise


def figure(rate: float, *, latencies_us: tuple[int, ...] = (), errors: int = 0) -> Figure:
    """A second of work."""
    return Figure(done=int(rate), seconds=1.0, latencies_us=latencies_us, errors=errors, first_error="boom" if errors else "")


def test_a_percentile_is_the_latency_that_this_share_kept_to() -> None:
    """Nearest rank over sorted microseconds, told in milliseconds."""
    measured = figure(100, latencies_us=tuple(range(1_000, 101_000, 1_000)))
    assert measured.percentile_ms(0.5) == 51
    assert measured.percentile_ms(0.99) == 100
    assert measured.percentile_ms(1.0) == 100


def test_one_call_for_all_has_no_percentiles() -> None:
    """Where single pieces were not timed, nothing is made up."""
    assert figure(100).percentile_ms(0.5) is None
    assert summarise([figure(100)]).p50_ms is None


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """A round in which everything was slow does not move it."""
    mine, theirs = [figure(200), figure(20), figure(220)], [figure(100), figure(10), figure(100)]
    assert rate_ratio(mine, theirs) == 2.0


@pytest.mark.parametrize("spoilt", [figure(100, errors=1), figure(0)])
def test_a_round_with_an_error_or_without_work_has_no_ratio(spoilt: Figure) -> None:
    """Fast errors are no throughput."""
    assert rate_ratio([figure(100), spoilt], [figure(100), figure(100)]) is None
    assert rate_ratio([figure(100), figure(100)], [figure(100), spoilt]) is None


def test_latencies_are_compared_where_both_timed_them() -> None:
    """The ratio of middle latencies, or none."""
    slow, fast = figure(1, latencies_us=(4_000,)), figure(1, latencies_us=(1_000,))
    assert p50_ratio([slow], [fast]) == 4.0
    assert p50_ratio([slow], [figure(1)]) is None
    assert p50_ratio([figure(1, latencies_us=(1,), errors=1)], [fast]) is None
    assert p50_ratio([], []) is None


def test_a_summary_adds_up_errors_and_keeps_the_first() -> None:
    """Medians hide no failure."""
    summary = summarise([figure(100), figure(300, errors=2), figure(200, errors=1)])
    assert (summary.rate, summary.errors, summary.first_error) == (200, 3, "boom")
