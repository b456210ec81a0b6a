"""A connection that leads to another cluster than it did: its users are where they were, and are proved absent nowhere else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.errors import BrokerError, DatabaseUnavailable
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState
from broker.testing.broker import until


@pytest.mark.parametrize("crash", [False, True])
async def test_promise_3_a_moved_connection_ends_leases_where_they_are(rig: Any, token: Any, crash: bool) -> None:  # noqa: FBT001 - a case
    """The former cluster loses the user, over the former address; new leases are made on the new one; the answer says so."""
    issued = await rig.issue(token)
    (warning,) = await rig.connection(connection_url="new")
    assert "another database cluster" in warning
    assert rig.can_log_in(issued)
    fresh = await rig.issue(token)
    assert fresh.username in rig.server("new").accounts
    if crash:
        await rig.crash_and_recover()
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert fresh.username in rig.server("new").accounts
    await rig.boot.revoker.revoke(fresh.lease_id)
    assert rig.server("new").accounts == {}


async def test_a_connection_at_the_same_cluster_keeps_its_number(rig: Any, token: Any) -> None:
    """Other fields, or another address of the same cluster, change nothing for its leases and warn of nothing."""
    number = rig.boot.catalog.connection("main").number
    issued = await rig.issue(token)
    rig.servers["alias"] = rig.server()
    assert await rig.connection(connection_url="alias") == []
    assert rig.boot.catalog.connection("main").number == number
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}


@pytest.mark.parametrize("crash", [False, True])
async def test_promise_3_an_unverified_move_serves_nobody(rig: Any, token: Any, crash: bool) -> None:  # noqa: FBT001 - a case
    """Kept untried, another cluster's address ends no lease and makes none, until it is verified: then all goes on, each at its own."""
    issued = await rig.issue(token)
    await rig.connection(connection_url="new", verify_connection=False)
    if crash:
        await rig.crash_and_recover()
    with pytest.raises(DatabaseUnavailable, match="verify_connection=true"):
        await rig.issue(token)
    with pytest.raises(BrokerError):
        await rig.boot.revoker.revoke(issued.lease_id)
    assert issued.username in rig.server().accounts
    assert (await rig.lease(issued.lease_id)).state is not LeaseState.GONE
    await rig.connection()
    await rig.settle_down()
    assert rig.server().accounts == {}
    fresh = await rig.issue(token)
    assert fresh.username in rig.server("new").accounts


async def test_an_unverified_address_of_the_same_cluster_is_proven_by_use(rig: Any, token: Any) -> None:
    """Once it has led there it is the one that is kept when the connection moves, and the former address is forgotten."""
    issued = await rig.issue(token)
    rig.servers["alias"] = rig.server()
    await rig.connection(connection_url="alias", verify_connection=False)
    assert rig.boot.catalog.connection("main").proven == {}
    rig.servers["third"] = rig.server()
    await rig.connection(connection_url="third", verify_connection=False)
    assert rig.boot.catalog.connection("main").cluster == rig.server().cluster
    await rig.issue(token)
    assert rig.boot.catalog.connection("main").proven is None
    await rig.connection(connection_url="new")
    (former,) = (one for one in rig.boot.catalog.connections() if one.deleted)
    assert former.details == {"connection_url": "third"}
    await rig.boot.revoker.revoke(issued.lease_id)
    assert issued.username not in rig.server().accounts


async def test_where_an_untried_connection_leads_is_durable_before_its_first_user(rig: Any, token: Any) -> None:
    """A connection that was never verified learns its cluster when it is first used, so that a later move is seen."""
    await rig.connection("second", verify_connection=False)
    await rig.role("apart", db_name="second")
    assert rig.boot.catalog.connection("second").cluster == ""
    learned = []
    rig.do("before second.create", lambda: learned.append(rig.boot.catalog.connection("second").cluster))
    issued = await rig.issue(token, "apart")
    assert learned == [rig.server("second").cluster]
    await rig.crash_and_recover()
    (warning,) = await rig.connection("second", connection_url="new")
    assert "another database cluster" in warning
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server("second").accounts == {}


async def test_prepared_users_stay_with_their_cluster(rig: Any, token: Any) -> None:
    """None of the former cluster's prepared users is handed out over the new one; they are removed where they are."""
    await rig.role(prepared_users=3)
    await rig.fill()
    first = await rig.issue(token)
    await rig.connection(connection_url="new")
    rig.passed.clear()
    second = await rig.issue(token)
    assert "before main.enable" not in rig.passed
    assert rig.can_log_in(second, "new")
    await rig.fill()
    await rig.settle_down()
    assert set(rig.server().accounts) == {first.username}


async def test_a_call_in_flight_outlives_a_changed_connection(rig: Any, token: Any) -> None:
    """The engine that a write replaces is closed only by the second clean-up after it, when every call has ended."""
    gate = rig.hold("before main.create")
    asking = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    await rig.connection()
    await rig.boot.catalog.purge_retired()
    assert "before main.close" not in rig.passed
    gate.opened.set()
    assert rig.can_log_in(await asking)
    await rig.boot.catalog.purge_retired()
    assert rig.passed.count("after main.close") == 1


async def test_an_engine_that_is_replaced_while_it_opens_is_closed(rig: Any, token: Any) -> None:
    """Whoever waited for it gets the one that took its place."""
    await rig.connection(verify_connection=False)
    gate = rig.hold("before main.open")
    asking = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    await rig.connection(verify_connection=False)
    rig.heal()
    gate.opened.set()
    assert rig.can_log_in(await asking)
    assert rig.passed.count("after main.open") == 3
    assert rig.passed.count("after main.close") == 1


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_a_write_goes_on_when_its_caller_leaves(rig: Any, token: Any) -> None:
    """What it wrote is known to the process that wrote it."""
    issued = await rig.issue(token)
    gate = rig.hold("after store.change_documents")
    writing = asyncio.create_task(rig.connection(connection_url="new"))
    await gate.entered.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    rig.heal()
    gate.opened.set()

    async def written() -> bool:
        return bool(rig.boot.catalog.connection("main").details == {"connection_url": "new"})

    await until(written)
    assert (await rig.issue(token)).username in rig.server("new").accounts
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}


@pytest.mark.parametrize("untried", [False, True])
async def test_a_crash_while_a_connection_moves_leaves_the_former_or_the_new_one(
    tmp_path: Path,
    make_rig: Any,
    untried: bool,  # noqa: FBT001 - a case
) -> None:
    """Killed at its n-th call for every n, there is always a connection of that name, and each lease ends where its user is."""
    position, died, led_to = 0, True, set()
    while died:
        rig = await make_rig(tmp_path / str(position), LeaseSettings())
        if untried:
            # Fields that nobody tried: the retired connection must go back to those before them.
            await rig.connection(connection_url="nowhere", verify_connection=False)
        rig.kill_at = position
        moving = asyncio.ensure_future(rig.connection(connection_url="new"))
        await asyncio.wait([moving])
        died = moving.exception() is not None
        await rig.crash_and_recover()
        kept = rig.boot.catalog.connection("main").details
        led_to.add(str(kept))
        assert kept in ({"connection_url": "new"}, {"connection_url": "nowhere"} if untried else {})
        await rig.connection(connection_url="new")
        await rig.settle_down()
        fresh = await rig.issue(rig.owner)
        assert fresh.username in rig.server("new").accounts
        await rig.boot.revoker.revoke(rig.standing.lease_id)
        await rig.boot.revoker.revoke(fresh.lease_id)
        await rig.fill()
        await rig.settle_down()
        await rig.check([rig.standing, fresh])
        assert rig.server().accounts == {}
        await rig.stop()
        position += 1
    assert len(led_to) == 2
