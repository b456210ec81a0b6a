"""Contain: access ends in time also while the store can't be written, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import DatabaseUnavailable, OutcomeUnknown, StoreUnavailable
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState

HOUR_MS = 3_600_000
WRITES = ("claim_due", "step", "move")


def _fill_disc(rig: Any, *writes: str, error: Exception | None = None) -> None:
    for write in writes or WRITES:
        rig.fail(f"before store.{write}", error or StoreUnavailable("the store can't be written (SQLITE_FULL)"))


async def _try(rig: Any) -> None:
    await rig.expire()
    rig.clock.advance(1_000)


@pytest.mark.parametrize("prepared", [0, 2])
@pytest.mark.parametrize("error", [None, OutcomeUnknown("not confirmed")], ids=["full", "unknown"])
async def test_what_is_due_is_contained_without_the_store(rig: Any, token: Any, prepared: int, error: Exception | None) -> None:
    """Login off and session ended, of what is due alone; the store knows nothing of it, and ends the lease once it can."""
    await rig.role("app", prepared_users=prepared)
    await rig.fill()
    due = await rig.issue(token)
    session = rig.server().log_in(due.username, due.password)
    rig.clock.advance(HOUR_MS // 2)
    later = await rig.issue(token)
    rig.clock.advance(HOUR_MS // 2)
    _fill_disc(rig, error=error)
    await _try(rig)
    assert not rig.server().is_open(session)
    assert not rig.server().accounts[due.username].can_login
    assert (await rig.lease(due.lease_id)).state is LeaseState.ACTIVE
    assert rig.can_log_in(later)
    rig.heal()
    await rig.settle_down()
    assert due.username not in rig.server().accounts
    assert (await rig.lease(due.lease_id)).state is LeaseState.GONE
    assert rig.can_log_in(later)


@pytest.mark.parametrize("write", ["step", "move"])
async def test_what_was_claimed_and_cut_short_is_contained(rig: Any, token: Any, write: str) -> None:
    """The claim moved it away from what is due; whoever claimed it remembers. What has a grace keeps its sessions for it."""
    await rig.role("app", session_grace="10m" if write == "move" else None)
    issued = await rig.issue(token)
    session = rig.server().log_in(issued.username, issued.password)
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig, write)
    await rig.expire()
    assert not rig.server().accounts[issued.username].can_login
    assert rig.server().is_open(session) == (write == "move")
    assert (await rig.lease(issued.lease_id)).state is LeaseState.ACTIVE


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_nobody_is_contained_twice(rig: Any, token: Any) -> None:
    """Page by page, each once as long as the store can't be written; after a database that was away, once more."""
    for _ in range(5):
        await rig.issue(token)
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig)
    rig.fail("before main.end_sessions", DatabaseUnavailable("away"), times=1)
    await _try(rig)
    rig.passed.clear()
    await _try(rig)
    assert rig.passed.count("after main.disable") == 3
    rig.passed.clear()
    await _try(rig)
    assert "before main.disable" not in rig.passed
    assert not any(account.can_login for account in rig.server().accounts.values())
    rig.heal()
    await rig.settle_down()
    assert rig.server().accounts == {}
    await rig.issue(token)
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig)
    await _try(rig)
    assert not any(account.can_login for account in rig.server().accounts.values())


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=3, revocation_batch=4)])
async def test_many_are_not_contained_by_a_doubtful_clock(rig: Any, token: Any) -> None:
    """Where the database says that it is not that late, they keep what they have, as they do where the store can be written."""
    issued = [await rig.issue(token) for _ in range(6)]
    server_clock = type(rig.clock)(rig.clock.now_ms())
    rig.server().clock = server_clock
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig)
    await _try(rig)
    assert all(rig.can_log_in(each) for each in issued)
    server_clock.advance(HOUR_MS)
    await _try(rig)
    assert not any(account.can_login for account in rig.server().accounts.values())


async def test_login_that_is_being_given_is_contained_afterwards(rig: Any, token: Any) -> None:
    """While a call holds it, it is left to that call; then it is its turn."""
    issued = await rig.issue(token)
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig)
    lease = await rig.lease(issued.lease_id)
    with rig.boot.parts.holds.login([lease.number]):
        await _try(rig)
        assert rig.server().accounts[issued.username].can_login
    await _try(rig)
    assert not rig.server().accounts[issued.username].can_login


async def test_whoever_logs_in_again_is_contained_again(rig: Any, token: Any) -> None:
    """Once the store could be written, nothing that was contained before counts: its login may have come back since."""
    issued = await rig.issue(token)
    rig.clock.advance(HOUR_MS)
    _fill_disc(rig, "step")
    await _try(rig)
    rig.server().accounts[issued.username].can_login = True
    await _try(rig)
    assert not rig.server().accounts[issued.username].can_login
