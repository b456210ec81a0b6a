"""What a reader sees of a run."""

from __future__ import annotations

import io

from rich.console import Console

from broker.bench.figures import Figure
from broker.bench.issuing import prepared_row, raw_row
from broker.bench.rows import Fact, Results, Row
from broker.bench.table import Shown, as_json


def results(*, errors: int = 0) -> Results:
    """Two rounds of two rows."""
    made = Results(facts=[Fact("memory", 123.4, "MB")], notes=["Read this."])
    for _ in range(2):
        made.add(raw_row(8), Figure(done=300, seconds=1, latencies_us=(20_000,)))
        made.add(prepared_row(8), Figure(done=2_100, seconds=1, latencies_us=(4_000,), errors=errors, first_error="HTTP 503"))
    return made


def shown(made: Results, width: int = 160) -> str:
    """The table as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(Shown(made))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_shows_rate_latencies_and_both_ratios() -> None:
    """Everything that is compared stands in its line."""
    line = next(line for line in shown(results()).splitlines() if "prepared" in line)
    for text in ("8", "2,100", "4.00", "7.00 x raw", "0.20 x raw"):
        assert text in line


def test_eighty_columns_do() -> None:
    """A pipe, and a terminal as it opens, show words and ratios whole."""
    made = results()
    made.add(Row("users ended while others wait", 32, raw_row(8), "superuser"), Figure(done=11_000, seconds=1))
    text = shown(made, width=80)
    for word in ("prepared", "ended", "while", "others", "11,000", "36.67 x", "superuser"):
        assert word in text
    assert "…" not in text


def test_a_row_with_errors_shows_no_figure() -> None:
    """Fast errors are not throughput."""
    text = shown(results(errors=1))
    assert "FAILED: 2 errors; HTTP 503" in text
    assert "2,100" not in text
    assert "7.00" not in text


def test_a_row_in_which_nothing_was_done_has_failed() -> None:
    """Silence is no success."""
    made = results()
    made.add(raw_row(1), Figure(done=0, seconds=1))
    assert raw_row(1) in made.failed()
    assert "nothing was done" in shown(made)


def test_facts_and_notes_follow() -> None:
    """Sizes have a table of their own; what has to be known stands below."""
    text = shown(results())
    assert "123" in text
    assert "Read this." in text


def test_the_json_holds_every_round() -> None:
    """Medians can be made again from it."""
    row = as_json(results())["rows"][1]
    assert row["rates"] == [2_100, 2_100]
    assert row["rate_to_base"] == 7.0
    assert row["base"] == raw_row(8).label
