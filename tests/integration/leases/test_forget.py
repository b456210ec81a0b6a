"""Forget: leases whose users can't be removed are taken off the books by force, and named."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import DatabaseUnavailable
from broker.leases import revoke
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState
from broker.testing.engine import OWN


async def test_force_takes_off_the_books_what_cannot_be_removed(rig: Any, token: Any) -> None:
    """After one attempt the lease is gone whatever the database said, and others that could be removed were."""
    await rig.role("owner", creation_statements=["make", OWN])
    good, bad = await rig.issue(token), await rig.issue(token, role="owner")
    await rig.boot.revoker.forget_prefix("database/creds")
    assert [(await rig.lease(one.lease_id)).state for one in (good, bad)] == [LeaseState.GONE] * 2
    assert set(rig.server().accounts) == {bad.username}
    assert not rig.can_log_in(bad)
    (entry,) = [entry for entry in rig.entries() if entry.get("response", {}).get("data", {}).get("reason") == "forced"]
    assert entry["response"]["secret"]["lease_id"] == bad.lease_id
    assert entry["response"]["data"]["username"] == bad.username
    assert entry["error"]


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_force_needs_one_failure_of_a_database_that_is_away(rig: Any, token: Any) -> None:
    """What waits behind the first batches is forgotten with them, and what another database has is revoked there."""
    await rig.connection("other")
    await rig.role("elsewhere", db_name="other")
    dead, well = [await rig.issue(token) for _ in range(9)], await rig.issue(token, role="elsewhere")
    rig.fail("before main.disable", DatabaseUnavailable("nobody answers", retry_after_s=60))
    assert await rig.boot.revoker.forget_prefix("database/creds") == 9
    assert [(await rig.lease(one.lease_id)).state for one in (*dead, well)] == [LeaseState.GONE] * 10
    assert rig.server("other").accounts == {}
    assert rig.passed.count("before main.disable") < 9
    errors = [entry["error"] for entry in rig.entries() if entry.get("response", {}).get("data", {}).get("reason") == "forced"]
    assert errors == ["nobody answers"] * 9


async def test_connection_that_is_forgotten_asks_no_database(rig: Any, token: Any) -> None:
    """All leases and prepared users of a database that never comes back are off the books at once, named; others' are not."""
    await rig.connection("other")
    await rig.role("elsewhere", db_name="other")
    await rig.role("pooled", prepared_users=3)
    await rig.fill()
    other, dead = await rig.issue(token, role="elsewhere"), [await rig.issue(token) for _ in range(3)]
    rig.fail("before main.disable", DatabaseUnavailable("nobody answers", retry_after_s=60))
    await rig.boot.revoker.start(dead[0].lease_id)
    await rig.expire()
    rig.passed.clear()
    numbers = rig.boot.parts.catalog.numbers_of("main")
    assert await rig.boot.revoker.forget_connections(numbers) == 6
    assert not [point for point in rig.passed if point.startswith("before main.")]
    assert {lease.facts.username for lease in await rig.leases(LeaseState.ACTIVE)} == {other.username}
    assert await rig.leases(LeaseState.PREPARED, LeaseState.REVOKING, LeaseState.STUCK) == []
    named = [entry["response"]["data"]["username"] for entry in rig.entries() if entry.get("error", "").endswith("by force")]
    assert sorted(named) == sorted(rig.server().accounts)
    assert await rig.boot.revoker.forget_connections(numbers) == 0


async def test_force_says_what_is_still_under_way(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is only slow keeps its leases on the books, and the caller is told that there are some."""
    monkeypatch.setattr(revoke, "_FORGET_WITHIN_S", 0)
    issued, gate = await rig.issue(token), rig.hold("before main.drop")
    with pytest.raises(DatabaseUnavailable, match="1 more are still being removed"):
        await rig.boot.revoker.forget_prefix("database/creds")
    assert (await rig.lease(issued.lease_id)).state is LeaseState.REVOKING
    gate.opened.set()
    await rig.settle_down()
    assert rig.server().accounts == {}
