"""The row of reconciling fails where it did not compare what it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.bench.comparing import Crowded, measure_reconcile, note_reconcile
from broker.bench.rows import Results
from broker.errors import Unavailable

AGREE = {"users": 7, "leases": 7, "found": {}, "error": ""}


class Answers:
    """A broker that is asked once and once more."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    async def write(self, _path: str, _fields: Any) -> dict[str, Any]:
        return {"data": {"state": "running", "connections": []}}

    async def read(self, _path: str) -> dict[str, Any]:
        if not self._report:
            raise Unavailable("gone")
        return {"data": {"state": "done", "connections": [self._report]}}


def crowd(report: dict[str, Any]) -> Crowded:
    """A broker of seven users that reports this; each look finds a MB more."""
    sizes = iter(range(100))
    service = cast("Any", SimpleNamespace(resident_mb=lambda: float(next(sizes))))
    return Crowded(7, service, cast("Any", Answers(report)), Results())


async def test_agreement_is_a_figure() -> None:
    """Seven users were compared; memory and seconds are among the facts."""
    made = crowd(AGREE)
    await measure_reconcile(made)
    note_reconcile(made)
    [[figure]] = made.results.figures.values()
    assert (figure.done, figure.errors) == (7, 0)
    assert [fact.unit for fact in made.results.facts] == ["s", "MB more at most"]
    assert made.results.facts[1].value == 1.0
    assert not made.results.failed()


@pytest.mark.parametrize(
    "report",
    [
        {**AGREE, "found": {"missing_user": 1}},
        {**AGREE, "users": 6},
        {**AGREE, "leases": 8},
        {**AGREE, "error": "the database does not answer"},
        {},
    ],
)
async def test_anything_else_fails_the_row(report: dict[str, Any]) -> None:
    """A difference, a user or lease left out, an error of the run or of the call."""
    made = crowd(report)
    await measure_reconcile(made)
    assert made.results.failed()
    [[figure]] = made.results.figures.values()
    assert figure.first_error
