"""The results as tables for a terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from broker.bench.rows import Results, Row
from broker.printable import printable

_WIDE = 110
"""Columns of a terminal from which on a ratio stands in one line and the rows' labels still have room."""
_LONGEST_BASE = len("superuser")


class Shown:
    """Results that rich can print."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        yield self._rows(options.max_width)
        if self._results.facts:
            yield self._facts()
        for note in self._results.notes:
            yield Text(note, style="dim")

    def _rows(self, width: int) -> Table:
        narrow = width < _WIDE
        table = Table(title="broker bench", title_justify="left", box=SIMPLE_HEAD if narrow else HEAVY_HEAD)
        table.add_column("what")
        for heading in ("clients", "done/s", "p50 ms", "p99 ms"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("rate to", "p50 to"):
            table.add_column(heading, justify="right", max_width=_LONGEST_BASE if narrow else None)
        for row in self._results.figures:
            self._add_row(table, row)
        return table

    def _add_row(self, table: Table, row: Row) -> None:
        results, summary = self._results, self._results.summary(row)
        clients = str(row.clients or "")
        if row in results.failed():
            text = f"FAILED: {summary.errors:,} errors; {printable(summary.first_error) or 'nothing was done'}"
            table.add_row(Text(f"{row.label}\n{text}"), clients, *[""] * 5, style="bold red")
            return
        table.add_row(
            row.label,
            clients,
            _rate(summary.rate),
            _milliseconds(summary.p50_ms),
            _milliseconds(summary.p99_ms),
            _ratio(results.rate_to(row, row.base), row.base_name),
            _ratio(results.p50_to(row, row.base), row.base_name),
        )

    def _facts(self) -> Table:
        table = Table(title="size", title_justify="left")
        table.add_column("what")
        table.add_column("", justify="right")
        table.add_column("")
        for fact in self._results.facts:
            table.add_row(fact.label, f"{fact.value:,.2f}" if fact.value < 10 else f"{fact.value:,.0f}", fact.unit)  # noqa: PLR2004
        return table


def as_json(results: Results) -> dict[str, Any]:
    """All that was measured: the rows with their medians and ratios, the facts, the notes."""
    return {
        "rows": [
            {
                "label": row.label,
                "clients": row.clients,
                **asdict(results.summary(row)),
                "base": row.base.label if row.base else None,
                "rate_to_base": results.rate_to(row, row.base),
                "p50_to_base": results.p50_to(row, row.base),
                "rates": [figure.rate for figure in results.figures[row]],
            }
            for row in results.figures
        ],
        "facts": [asdict(fact) for fact in results.facts],
        "notes": results.notes,
    }


def _rate(rate: float) -> str:
    return f"{rate:,.0f}"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _ratio(value: float | None, base: str) -> str:
    return "" if value is None else f"{value:.2f} x {base}"
