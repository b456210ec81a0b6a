"""What is told of how far revocation is behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from broker.errors import DatabaseUnavailable, EngineError
from broker.leases import backlog
from broker.leases.backlog import BacklogWatch, Overdue
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState


def _sample(rig: Any, name: str) -> float:
    return float(rig.boot.parts.metrics.registry.get_sample_value(name))


async def test_a_database_that_is_away_shows_as_backlog_since_the_first_end(rig: Any, token: Any) -> None:
    """Tried or not, each lease counts from its end on; the age is that of the oldest; back again, nothing is left."""
    watch = BacklogWatch(rig.boot.parts)
    await watch.look()
    assert watch.overdue == Overdue(0, 0)
    await rig.issue(token)
    rig.clock.advance(60_000)
    await rig.issue(token)
    rig.fail("before main.disable", DatabaseUnavailable())
    rig.clock.advance(3_545_000)
    await rig.expire()
    await watch.look()
    assert watch.overdue == Overdue(1, 5)
    rig.clock.advance(60_000)
    await watch.look()
    assert watch.overdue == Overdue(2, 65)
    assert _sample(rig, "broker_revocations_overdue") == 2
    assert _sample(rig, "broker_revocations_oldest_overdue_seconds") == 65
    await rig.crash_and_recover()
    rig.fail("before main.open", DatabaseUnavailable())
    await rig.expire()
    watch = BacklogWatch(rig.boot.parts)
    await watch.look()
    assert watch.overdue == Overdue(2, 65)
    rig.heal()
    await rig.settle_down()
    await watch.look()
    assert watch.overdue == Overdue(0, 0)
    assert _sample(rig, "broker_revocations_oldest_overdue_seconds") == 0


async def test_a_stuck_lease_is_no_backlog(rig: Any, token: Any) -> None:
    """It waits for somebody, is counted elsewhere, and must not hide behind, or stand for, a revocation that is late."""
    issued = await rig.issue(token)
    rig.fail("before main.drop", EngineError("owns a table"))
    await rig.boot.revoker.start(issued.lease_id)
    watch = BacklogWatch(rig.boot.parts)
    stuck = 0
    while not stuck:
        rig.clock.advance(400_000)
        await rig.expire()
        # A drain that was asked for again while it went on starts another look as it ends.
        while under_way := [*rig._tasks, *rig.boot.expirer._drains.values()]:
            await asyncio.gather(*under_way)
        stuck = await rig.boot.query.stuck_count()
        await watch.look()
        assert watch.overdue.count == 1 - stuck
    assert rig.passed.count("before main.drop") >= 8
    # Due to be tried once more, it still waits for somebody, not for us.
    rig.clock.advance(3_600_000)
    await watch.look()
    assert watch.overdue == Overdue(0, 0)


async def test_counting_stops_where_it_would_cost(rig: Any, token: Any, monkeypatch: Any) -> None:
    """Of a great backlog the count is cut, never the age."""
    monkeypatch.setattr(backlog, "COUNTED_MOST", 2)
    for _ in range(4):
        await rig.issue(token)
        rig.clock.advance(1_000)
    rig.clock.advance(3_600_000)
    watch = BacklogWatch(rig.boot.parts)
    await watch.look()
    assert watch.overdue == Overdue(2, 4)


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_work_under_way_on_a_database_is_bounded(rig: Any, token: Any) -> None:
    """However great its backlog, a connection has two batches in hand; what is behind them is not even claimed."""
    for _ in range(12):
        await rig.issue(token)
    calls, second, go_on = itertools.count(1), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        call = next(calls)
        if call == 3:
            second.set()
        if call > 1:
            await go_on.wait()

    rig.do("before main.disable", wait)
    await rig.boot.revoker.start_prefix("")
    ending = asyncio.create_task(rig.expire())
    async with asyncio.timeout(60):
        await second.wait()
    for _ in range(20):
        await rig.boot.sqlite.barrier()
    assert next(calls) == 4
    assert sum(bool(lease.epoch) for lease in await rig.leases(LeaseState.REVOKING)) == 4
    go_on.set()
    await ending
    assert rig.server().accounts == {}
