"""The progress bar of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_REDRAWS_PER_SECOND = 2


class Bar:
    """Tells a progress bar what a run does."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=steps)

    def begins(self, label: str) -> None:
        """See `broker.bench.run.Progress`."""
        self._bar.update(self._task, description=label)

    def done(self) -> None:
        """See `broker.bench.run.Progress`."""
        self._bar.advance(self._task)


@contextmanager
def watched(console: Console, steps: int) -> Iterator[Bar]:
    """A progress bar that is gone when the run is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn seldom: the bar runs on the same cores as what is measured.
    with Progress(*columns, console=console, refresh_per_second=_REDRAWS_PER_SECOND, transient=True) as bar:
        yield Bar(bar, steps)
