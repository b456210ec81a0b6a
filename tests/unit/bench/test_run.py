"""The order of a run."""

from __future__ import annotations

from typing import Any, cast

import pytest

from broker.bench.issuing import Subject
from broker.bench.plan import Plan
from broker.bench.rows import Results
from broker.bench.run import notes, step_count, steps

PLANS = [
    Plan(),
    Plan(rounds=5, clients=(4,)),
    Plan(revoked=0),
    Plan(due=0),
    Plan(revoked=0, due=0, rounds=1),
    Plan(standby=True),
]


@pytest.mark.parametrize("plan", PLANS)
def test_the_progress_bar_ends_with_the_last_step(plan: Plan) -> None:
    """As many steps are foretold as there are, the start of the broker included."""
    nothing = cast("Any", None)
    subject = Subject(plan, nothing, nothing, Results())
    assert step_count(plan) == 1 + len(list(steps(subject, nothing)))


@pytest.mark.parametrize("what", ["scale", "limited", "reconciled"])
def test_what_stands_beside_has_its_steps(what: str) -> None:
    """Making it ready is a step, and each round of it."""
    wanted: Any = {"scale": (1, 2), "limited": 5, "reconciled": 5}[what]
    assert step_count(Plan(rounds=4, **{what: wanted})) == step_count(Plan(rounds=4)) + 1 + 4


def test_a_reader_is_told_of_unusual_iterations() -> None:
    """A rate that was made cheap is not passed off as an ordinary one."""
    assert not any("Users usually have" in note for note in notes(Plan()))
    assert any("Users usually have" in note for note in notes(Plan(scram_iterations=1)))
