"""What was measured, and how two measurements compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement: how much was done in how many seconds, and how long each piece took."""

    done: int
    seconds: float
    latencies_us: tuple[int, ...] = ()
    """Sorted; empty where one call did all of it."""
    errors: int = 0
    first_error: str = ""

    @property
    def rate(self) -> float:
        """Pieces per second; what failed is not among them."""
        return self.done / self.seconds if self.seconds else 0.0

    def percentile_ms(self, share: float) -> float | None:
        """The latency that `share` (0 to 1) of the pieces kept to, by nearest rank; None where single ones were not timed."""
        if not self.latencies_us:
            return None
        rank = min(len(self.latencies_us) - 1, int(share * len(self.latencies_us)))
        return self.latencies_us[rank] / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The rounds of one row, as medians; the errors of all rounds added up."""

    rate: float
    seconds: float
    done: int
    p50_ms: float | None
    p99_ms: float | None
    errors: int
    first_error: str


def summarise(figures: Sequence[Figure]) -> Summary:
    """Medians over rounds. `figures` is not empty."""
    return Summary(
        rate=median(figure.rate for figure in figures),
        seconds=median(figure.seconds for figure in figures),
        done=round(median(figure.done for figure in figures)),
        p50_ms=_median_percentile(figures, 0.5),
        p99_ms=_median_percentile(figures, 0.99),
        errors=sum(figure.errors for figure in figures),
        first_error=next((figure.first_error for figure in figures if figure.first_error), ""),
    )


def rate_ratio(figures: Sequence[Figure], base: Sequence[Figure]) -> float | None:
    """The median of each round's ratio of rates: neighbours that slow a whole round down do not move it.

    None where a round of either failed, for a fast failure is no throughput.
    """
    if any(figure.errors or not figure.done for figure in (*figures, *base)):
        return None
    return median(mine.rate / theirs.rate for mine, theirs in zip(figures, base, strict=False))


def p50_ratio(figures: Sequence[Figure], base: Sequence[Figure]) -> float | None:
    """The median of each round's ratio of middle latencies; None where a round of either failed or timed nothing."""
    pairs = [(mine.percentile_ms(0.5), theirs.percentile_ms(0.5)) for mine, theirs in zip(figures, base, strict=False)]
    if any(figure.errors for figure in (*figures, *base)) or not pairs:
        return None
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return median(ratios) if len(ratios) == len(pairs) else None


def _median_percentile(figures: Sequence[Figure], share: float) -> float | None:
    seen = [value for figure in figures if (value := figure.percentile_ms(share)) is not None]
    return median(seen) if seen else None
