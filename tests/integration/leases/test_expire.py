"""Expire: what falls due is ended, in batches, and nobody holds up anybody else."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import DatabaseUnavailable
from broker.leases import expire
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState
from broker.testing.engine import OWN

VERBS = ("disable", "end_sessions", "release", "drop", "prove_absent")


async def test_time_to_disabled_counts_from_the_end_of_the_prefix(rig: Any, token: Any) -> None:
    """A lease that waits behind a busy database counts its waiting: from the moment that its prefix was ended."""
    await rig.issue(token)
    await rig.boot.revoker.start_prefix("database")
    rig.clock.advance(5_000)
    await rig.expire()
    (entry,) = [entry for entry in rig.entries() if "time_to_disabled_ms" in entry.get("response", {}).get("data", {})]
    assert entry["response"]["data"]["time_to_disabled_ms"] == 5_000


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=1_000)])
async def test_one_bad_user_does_not_hold_its_batch(rig: Any, token: Any) -> None:
    """Of ten leases that end together the nine good ones are gone after one look."""
    await rig.role("owner", creation_statements=["make", OWN])
    for _ in range(9):
        await rig.issue(token)
    bad = await rig.issue(token, role="owner")
    rig.clock.advance(3_600_000)
    await rig.expire()
    assert set(rig.server().accounts) == {bad.username}


async def test_a_dead_database_delays_no_other(rig: Any, token: Any) -> None:
    """With one database hanging, another one's leases expire at once."""
    await rig.connection("second")
    await rig.role("second", db_name="second")
    await rig.issue(token)
    await rig.issue(token, role="second")
    gate = rig.hold("before main.disable")
    rig.clock.advance(3_600_000)
    await rig.boot.expirer.run()
    await gate.entered.wait()
    number = rig.boot.catalog.connection("second").number
    await asyncio.gather(*(drain for drained, drain in rig.boot.expirer._drains.items() if drained == number))
    assert rig.server("second").accounts == {}
    assert len(rig.server().accounts) == 1
    gate.opened.set()


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_a_database_that_is_away_is_not_asked_batch_by_batch(rig: Any, token: Any) -> None:
    """One batch finds it away; the backlog behind it is neither claimed nor changed, nor looked at, until its rest is over."""
    for _ in range(7):
        await rig.issue(token)
    rig.fail("before main.disable", DatabaseUnavailable(retry_after_s=5))
    await rig.boot.revoker.start_prefix("")
    await rig.expire()
    for _ in range(5):
        assert await rig.boot.expirer.run() == 5_000
    rig.clock.advance(2_000)
    await rig.connection("second")
    await rig.role("second", db_name="second", default_ttl=1)
    await rig.issue(token, role="second")
    assert await rig.boot.expirer.run() == 1_000
    leases = await rig.leases(LeaseState.REVOKING)
    assert sorted(lease.epoch for lease in leases) == [0, 0, 0, 0, 0, 1, 1]
    assert all(lease.attempts == 0 for lease in leases)
    rig.heal()
    await rig.settle_down()
    assert rig.server().accounts == {}


async def test_a_lease_ends_with_its_time(rig: Any, token: Any) -> None:
    """Nothing happens a millisecond before its time, and the user is gone right after; the reason is on record."""
    issued = await rig.issue(token)
    rig.clock.advance(3_599_999)
    await rig.expire()
    assert rig.can_log_in(issued)
    rig.clock.advance(1)
    await rig.expire()
    assert rig.server().accounts == {}


async def test_a_claim_outlasts_its_stages(rig: Any, token: Any) -> None:
    """However long the stages take together, each has most of a hold ahead of it, so that nobody else begins the same work."""
    issued = await rig.issue(token)
    ahead: list[int] = []

    async def slow() -> None:
        ahead.append((await rig.lease(issued.lease_id)).due_ms - rig.clock.now_ms())
        rig.clock.advance(299_000)

    for verb in VERBS:
        rig.do(f"before main.{verb}", slow)
    rig.clock.advance((await rig.lease(issued.lease_id)).due_ms - rig.clock.now_ms())
    await rig.expire()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert len(ahead) == len(VERBS)
    assert min(ahead) > 599_000


async def test_a_slow_batch_does_not_put_off_the_next(rig: Any, token: Any, monkeypatch: Any) -> None:
    """While leases are asked for, a drain whose batch took five minutes does not rest a quarter of an hour."""
    first, second = [await rig.issue(token) for _ in range(2)]
    seconds = itertools.count(0, 300)
    monkeypatch.setattr(expire, "stopwatch_s", lambda: next(seconds))
    rig.boot.parts.issuing += 1
    async with asyncio.timeout(20):
        await rig.boot.revoker.revoke(first.lease_id)
        await rig.boot.revoker.revoke(second.lease_id)
    assert rig.server().accounts == {}


class Rests:
    """Stands in for the `asyncio` of the expiry: its rests last until the test ends them, and each batch took a tenth of a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans_s: list[float] = []
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        tenths = itertools.count()
        monkeypatch.setattr(expire, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": self.rest})))
        monkeypatch.setattr(expire, "stopwatch_s", lambda: next(tenths) / 10)

    async def rest(self, span_s: float) -> None:
        self.spans_s.append(span_s)
        self.begun.set()
        await self.over.wait()


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_issuing_has_priority_over_a_backlog(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody waits for a lease a drain rests after its batch, several times as long; then it goes on without one."""
    for _ in range(7):
        await rig.issue(token)
    made, rests = rig.hold("before main.create"), Rests(monkeypatch)
    asking = asyncio.ensure_future(rig.issue(token))
    await made.entered.wait()
    await rig.boot.revoker.start_prefix("")
    async with asyncio.timeout(60):
        await rests.begun.wait()
    assert rests.spans_s[0] >= 0.5
    assert len(await rig.leases(LeaseState.GONE)) == 2
    assert [lease.epoch for lease in await rig.leases(LeaseState.REVOKING)] == [0] * 5
    made.opened.set()
    issued = await asking
    rests.over.set()
    await rig.expire()
    assert len(rests.spans_s) == 1
    assert set(rig.server().accounts) == {issued.username}


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_a_backlog_is_worked_off_without_a_rest_when_nobody_asks(
    rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch follows batch."""
    for _ in range(7):
        await rig.issue(token)
    rests = Rests(monkeypatch)
    await rig.boot.revoker.start_prefix("")
    async with asyncio.timeout(60):
        await rig.expire()
    assert rests.spans_s == []
    assert rig.server().accounts == {}
