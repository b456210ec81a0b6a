"""Recovery: after a broker's crash, and after a database's restart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import DatabaseUnavailable
from broker.leases import recover
from broker.leases.lifecycle import ends_ms
from broker.model import LeaseState

_TIME_TO_UNDO_S = 0.2
"""How long a call that should wait is given to do its harm."""


@pytest.fixture
async def pooled(rig: Any) -> Any:
    """The rig with a role `pooled` and two prepared users."""
    await rig.role("pooled", prepared_users=2)
    await rig.fill()
    return rig


async def test_intents_are_recovered_and_said_to_be(rig: Any, token: Any) -> None:
    """An intent of a dead process ends as recovered, audited, though its user was made."""
    rig.fail("after main.create", DatabaseUnavailable())
    rig.fail("before store.move", DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await rig.issue(token)
    assert len(rig.server().accounts) == 1
    await rig.kill()
    rig.plans.clear()
    boot = await rig.start()
    assert await boot.recovery.at_start(boot.highest) == 1
    (lease,) = await rig.leases()
    assert (lease.state, lease.facts.reason) == (LeaseState.REVOKING, "recovered")
    await rig.settle_down()
    assert rig.server().accounts == {}
    assert any(entry["request"]["operation"] == "recover" for entry in rig.entries())


async def test_recovery_leaves_new_intents_alone(rig: Any, token: Any) -> None:
    """What this process began while recovery runs in the background is not touched."""
    await rig.crash_and_recover()
    rig.do("before main.create", lambda: rig.boot.recovery.at_start(rig.boot.highest))
    issued = await rig.issue(token)
    await rig.settle_down()
    assert rig.can_log_in(issued)


async def test_settled_logins_are_not_turned_on_again(pooled: Any, token: Any) -> None:
    """A login that had time to reach the database's disc is settled, and a later restart of the database does not matter."""
    await pooled.issue(token, role="pooled")
    await pooled.boot.recovery.settle()
    assert len(await pooled.boot.sqlite.unsettled(10)) == 1
    pooled.clock.advance(2_000)
    await pooled.boot.recovery.settle()
    assert await pooled.boot.sqlite.unsettled(10) == []
    pooled.started["main"] = "2"
    pooled.passed.clear()
    await pooled.boot.recovery.settle()
    assert "before main.enable" not in pooled.passed


@pytest.mark.parametrize("broken", [0, 1, 3])
async def test_logins_lost_by_a_restarted_database_come_back(pooled: Any, token: Any, broken: int) -> None:
    """A database that restarts before a login was on its disc gets it again, however often that fails at first."""
    await pooled.boot.recovery.settle()
    issued = await pooled.issue(token, role="pooled")
    pooled.server().accounts[issued.username].can_login = False
    pooled.started["main"] = "2"
    pooled.clock.advance(10_000)
    pooled.fail("before main.enable", DatabaseUnavailable(), times=broken)
    for _ in range(broken + 1):
        await pooled.boot.recovery.settle()
        assert len(await pooled.boot.sqlite.unsettled(10)) == 1
        pooled.clock.advance(1)
    assert pooled.can_log_in(issued)
    pooled.clock.advance(2_000)
    await pooled.boot.recovery.settle()
    assert await pooled.boot.sqlite.unsettled(10) == []


async def test_logins_come_back_when_broker_and_database_crashed(pooled: Any, token: Any) -> None:
    """After both died the login is on again without anybody asking for a lease on that connection."""
    issued = await pooled.issue(token, role="pooled")
    pooled.server().accounts[issued.username].can_login = False
    await pooled.crash_and_recover()
    await pooled.boot.recovery.settle()
    assert pooled.can_log_in(issued)


async def test_a_database_that_is_away_at_the_start_is_asked_again(pooled: Any, token: Any) -> None:
    """Recovery that finds the database away comes back to it."""
    issued = await pooled.issue(token, role="pooled")
    pooled.server().accounts[issued.username].can_login = False
    await pooled.crash_and_recover()
    pooled.fail("before main.open", DatabaseUnavailable(), times=1)
    await pooled.boot.recovery.settle()
    assert not pooled.can_log_in(issued)
    await pooled.boot.recovery.settle()
    assert pooled.can_log_in(issued)


async def test_a_dead_connection_hides_no_others_logins(pooled: Any, token: Any, monkeypatch: Any) -> None:
    """However many logins wait for a database that is away, another one's come back, all of them."""
    monkeypatch.setattr(recover, "_PAGE", 2)
    for name, size in (("dead", 5), ("well", 5)):
        await pooled.connection(name)
        await pooled.role(name, db_name=name, prepared_users=size)
    await pooled.fill()
    for _ in range(5):
        await pooled.issue(token, role="dead")
    issued = [await pooled.issue(token, role="well") for _ in range(5)]
    for one in issued:
        pooled.server("well").accounts[one.username].can_login = False
    await pooled.crash_and_recover()
    pooled.passed.clear()
    pooled.fail("before dead.open", DatabaseUnavailable())
    await pooled.boot.recovery.settle()
    assert all(pooled.can_log_in(one, "well") for one in issued)
    assert pooled.passed.count("before well.enable") == 3, "its own five, by two"
    assert "before main.open" not in pooled.passed, "it is owed nothing"


async def test_a_revoked_login_is_not_turned_on_again(pooled: Any, token: Any) -> None:
    """A lease that is revoked while logins are re-applied gets none: it is read once more before."""
    issued = await pooled.issue(token, role="pooled")
    pooled.started["main"] = "2"
    pooled.do("after store.unsettled", lambda: pooled.boot.revoker.revoke(issued.lease_id))
    pooled.passed.clear()
    await pooled.boot.recovery.settle()
    assert "before main.enable" not in pooled.passed
    await pooled.check([issued])


async def test_a_renewed_end_is_not_undone(pooled: Any, token: Any) -> None:
    """A login that is turned on again while its lease is renewed ends when the renewed lease does: whoever comes second waits."""
    issued = await pooled.issue(token, role="pooled")
    pooled.started["main"] = "2"
    gate = pooled.hold("after main.extend")
    renewing = asyncio.ensure_future(pooled.boot.renewer.renew(issued.lease_id, 7_200))
    await gate.entered.wait()
    settling = asyncio.ensure_future(pooled.boot.recovery.settle())
    await asyncio.wait([settling], timeout=_TIME_TO_UNDO_S)
    gate.opened.set()
    await asyncio.gather(renewing, settling)
    lease = await pooled.lease(issued.lease_id)
    assert pooled.server().accounts[issued.username].expires_ms == ends_ms(lease)
    assert "before main.enable" in pooled.passed


async def test_a_login_that_comes_on_after_it_went_off_goes_off_again(pooled: Any, token: Any) -> None:
    """A revocation that looked too early who is being given a login, and turned it off first, is not undone by that login."""
    issued = await pooled.issue(token, role="pooled")
    ended, before = pooled.hold("before main.end_sessions"), pooled.hold("before store.step")
    pooled.clock.advance(86_400_000)
    expiring = asyncio.ensure_future(pooled.expire())
    await before.entered.wait()
    late = pooled.hold("before main.enable")
    reapplying = asyncio.ensure_future(pooled.boot.recovery.reapply((await pooled.lease(issued.lease_id)).connection))
    await late.entered.wait()
    before.opened.set()
    await ended.entered.wait()
    late.opened.set()
    await reapplying
    assert not pooled.server().accounts[issued.username].can_login
    ended.opened.set()
    await expiring
    await pooled.check([issued])


async def test_a_jump_of_the_wall_clock_is_told_once(rig: Any, token: Any) -> None:
    """A gap that moves by a minute is audited and counted once, leases go on by broker time, and moving back is told too."""
    issued = await rig.issue(token)
    watch, registry = rig.boot.clockwatch, rig.boot.parts.metrics.registry
    for ahead_ms, jumps in ((59_999, 0), (3_600_000, 1), (3_600_000, 1), (0, 2)):
        rig.clock.wall_ahead_ms = ahead_ms
        await watch.look()
        assert registry.get_sample_value("broker_clock_jumps_total") == jumps
    assert [entry["request"]["path"] for entry in rig.entries()].count("sys/clock") == 2
    await rig.expire()
    assert rig.can_log_in(issued)
