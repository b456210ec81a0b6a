"""The rows of the table, and what was measured for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from broker.bench.figures import Figure, Summary, p50_ratio, rate_ratio, summarise


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was done, by how many clients (0 where one call does all), and the row it is compared with."""

    label: str
    clients: int = 0
    base: Row | None = None
    base_name: str = "raw"


@dataclass(frozen=True, slots=True)
class Fact:
    """A single number that is no rate: a start-up time, a size."""

    label: str
    value: float
    unit: str


@dataclass(slots=True)
class Results:
    """All figures of a run, row by row in the order in which the rows first came."""

    figures: dict[Row, list[Figure]] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences that a reader of the figures has to know."""

    def add(self, row: Row, figure: Figure) -> None:
        """One more round of a row."""
        self.figures.setdefault(row, []).append(figure)

    def summary(self, row: Row) -> Summary:
        """A row's medians."""
        return summarise(self.figures[row])

    def rate_to(self, row: Row, base: Row | None) -> float | None:
        """A row's rate as a multiple of another's; None without one, and where either failed."""
        return rate_ratio(self.figures[row], self.figures[base]) if base in self.figures and base is not None else None

    def p50_to(self, row: Row, base: Row | None) -> float | None:
        """A row's middle latency as a multiple of another's; None as above."""
        return p50_ratio(self.figures[row], self.figures[base]) if base in self.figures and base is not None else None

    def failed(self) -> Sequence[Row]:
        """Rows with an error, or with nothing done, in any round."""
        return [row for row, figures in self.figures.items() if any(f.errors or not f.done for f in figures)]


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the run, as the progress bar shows it."""

    label: str
    run: Callable[[], Awaitable[None]]
