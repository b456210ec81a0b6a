"""The row of reconciling: a database full of users is compared with a store of as many leases; the broker's memory is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from broker.bench.calls import Calls, calls
from broker.bench.database import BenchDatabase
from broker.bench.figures import Figure
from broker.bench.filling import fill
from broker.bench.plan import Plan
from broker.bench.rows import Fact, Results, Row
from broker.bench.service import QUICK, Service, service
from broker.clock import stopwatch_s
from broker.errors import Unavailable

_PATH = "sys/reconcile"
_QUIET_S = 1.0
_POLL_S = 0.1
_NO_JOB = "[leases]\nreconcile = 0\n"
"""The job would compare at a moment of its own."""


@dataclass(slots=True)
class Crowded:
    """A broker whose leases all have their users."""

    count: int
    service: Service
    calls: Calls
    results: Results
    growth_mb: float = 0.0
    """The most by which the broker's memory grew in a round."""


def reconcile_row(count: int) -> Row:
    """A dry run over `count` users and as many leases, that agree."""
    return Row(f"broker: reconcile {count:,} users with as many leases")


@asynccontextmanager
async def crowded(plan: Plan, database: BenchDatabase, results: Results) -> AsyncIterator[Crowded]:
    """The broker, running and quiet. Its plan keeps no pool: prepared users would be compared, too."""
    async with service(_NO_JOB) as made:
        await fill(made, database, replace(plan, prepared=0), plan.reconciled, database.make_marked)
        await made.start()
        async with calls(made.address) as open_calls:
            await asyncio.sleep(_QUIET_S)
            yield Crowded(plan.reconciled, made, open_calls, results)


async def measure_reconcile(crowd: Crowded) -> None:
    """One round of `reconcile_row`."""
    before_mb, started_s = crowd.service.resident_mb(), stopwatch_s()
    try:
        found = (await crowd.calls.write(_PATH, {"connection": QUICK}))["data"]
        while found["state"] == "running":
            await asyncio.sleep(_POLL_S)
            found = (await crowd.calls.read(_PATH))["data"]
            crowd.growth_mb = max(crowd.growth_mb, crowd.service.resident_mb() - before_mb)
    except Unavailable as error:
        figure = Figure(done=0, seconds=stopwatch_s() - started_s, errors=1, first_error=str(error))
    else:
        figure = _figure(found, crowd.count, stopwatch_s() - started_s)
    crowd.results.add(reconcile_row(crowd.count), figure)


def note_reconcile(crowd: Crowded) -> None:
    """Writes down how long the whole took, and how much memory."""
    label = f"reconcile {crowd.count:,} users with as many leases"
    seconds = crowd.results.summary(reconcile_row(crowd.count)).seconds
    crowd.results.facts.append(Fact(label, seconds, "s"))
    crowd.results.facts.append(Fact(f"{label}: memory", crowd.growth_mb, "MB more at most"))


def _figure(found: dict[str, Any], count: int, seconds: float) -> Figure:
    """What was compared; a difference is an error, as is a user or lease that was left out."""
    [report] = found["connections"]
    differ = sum(report["found"].values()) + abs(report["users"] - count) + abs(report["leases"] - count)
    error = report["error"] or (
        f"found {report['found']} in {report['users']:,} users, {report['leases']:,} leases" if differ else ""
    )
    return Figure(done=report["users"], seconds=seconds, errors=differ or bool(error), first_error=error)
