"""Witness: many leases due at once end only when the database's clock agrees, or after a while all the same."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import EngineError
from broker.leases.settings import LeaseSettings


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3, revocation_batch=4)])
async def test_promise_10_a_mass_expiry_waits_for_a_doubtful_clock(rig: Any, token: Any) -> None:
    """Where the database says that it is not that late, nobody loses a login, not even the last few; and the log says so."""
    for _ in range(6):
        await rig.issue(token)
    server_clock = type(rig.clock)(rig.clock.now_ms())
    rig.server().clock = server_clock
    rig.clock.advance(3_600_000)
    for _ in range(4):
        await rig.expire()
        await rig.expire()
        rig.clock.advance(5_000)
    assert len(rig.server().accounts) == 6
    assert all(account.can_login for account in rig.server().accounts.values())
    assert "clocks disagree" in rig.entries()[-1]["error"]
    server_clock.advance(3_620_000)
    await rig.settle_down()
    assert rig.server().accounts == {}


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3, revocation_batch=4)])
async def test_promise_10_a_doubt_ends_after_ten_minutes(rig: Any, token: Any) -> None:
    """A broker whose time stays days ahead of every database ends leases all the same, and says each of the two things once."""
    server_clock = type(rig.clock)(rig.clock.now_ms())
    rig.server().clock = server_clock
    rig.clock.advance(30 * 86_400_000)
    for _ in range(6):
        await rig.issue(token)
    rig.clock.advance(3_600_000)
    for _ in range(599):
        await rig.expire()
        rig.clock.advance(1_000)
    assert len(rig.server().accounts) == 6
    rig.clock.advance(10_000)
    await rig.settle_down()
    assert rig.server().accounts == {}
    for _ in range(6):
        await rig.issue(token)
    rig.clock.advance(3_600_000)
    await rig.settle_down()
    assert rig.server().accounts == {}
    told = [entry["error"] for entry in rig.entries() if "clocks disagree" in entry.get("error", "")]
    assert [one.partition(": ")[2] for one in told] == ["mass expiry waits", "they did for ten minutes, leases end"]


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3, revocation_batch=4)])
async def test_a_new_doubt_waits_again(rig: Any, token: Any) -> None:
    """Clocks that agreed in between make the next disagreement a doubt of its own."""
    rig.server().clock = type(rig.clock)(rig.clock.now_ms())
    for server_time_follows in (True, False):
        for _ in range(4):
            await rig.issue(token)
        rig.clock.advance(3_600_000)
        await rig.expire()
        assert len(rig.server().accounts) == 4
        rig.clock.advance(601_000)
        if server_time_follows:
            rig.server().clock.advance(4_201_000)
        await rig.settle_down()
        assert rig.server().accounts == {}
    told = [entry["error"].partition(": ")[2] for entry in rig.entries() if "clocks disagree" in entry.get("error", "")]
    assert told == ["mass expiry waits", "mass expiry waits", "they did for ten minutes, leases end"]


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3, revocation_batch=4)])
async def test_a_doubt_holds_no_lease_that_a_caller_ends(rig: Any, token: Any) -> None:
    """What a caller asks to end, ends while the clocks disagree; what fell due beside it waits."""
    issued = [await rig.issue(token) for _ in range(4)]
    rig.server().clock = type(rig.clock)(rig.clock.now_ms())
    rig.clock.advance(3_600_000)
    await rig.expire()
    assert len(rig.server().accounts) == 4
    await rig.boot.revoker.revoke(issued[0].lease_id)
    assert set(rig.server().accounts) == {one.username for one in issued[1:]}


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3)])
async def test_a_doubt_ends_without_the_audit_log_too(rig: Any, token: Any) -> None:
    """After its time the users lose their logins though the log can take no word of it; it gets the word once it can."""
    for _ in range(4):
        await rig.issue(token)
    rig.server().clock = type(rig.clock)(rig.clock.now_ms())
    rig.clock.advance(3_600_000)
    await rig.expire()
    rig.clock.advance(600_000)
    rig.boot.device.flushes_left = 0
    await rig.expire()
    assert not any(account.can_login for account in rig.server().accounts.values())


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=2)])
async def test_promise_10_a_silent_database_does_not_keep_leases_alive(rig: Any, token: Any) -> None:
    """A witness that does not answer is waited for a minute; then the leases end all the same."""
    for _ in range(3):
        await rig.issue(token)
    rig.fail("before main.health", EngineError("no answer"))
    rig.clock.advance(3_600_000)
    await rig.expire()
    assert len(rig.server().accounts) == 3
    rig.clock.advance(30_000)
    await rig.expire()
    assert len(rig.server().accounts) == 3
    rig.clock.advance(31_000)
    await rig.expire()
    assert rig.server().accounts == {}
