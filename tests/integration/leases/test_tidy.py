"""Tidy: what is past its time goes, and no sooner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import InvalidRequest
from broker.model import LeaseState


async def test_a_deleted_connection_still_ends_its_leases(rig: Any, token: Any) -> None:
    """Its leases are revoked over it, after a restart too; once they are gone and the time for late ones is over, so is it."""
    issued = await rig.issue(token)
    await rig.boot.catalog.delete_connection("main")
    with pytest.raises(InvalidRequest, match="failed to find entry for connection"):
        await rig.issue(token)
    await rig.crash_and_recover()
    rig.clock.advance(3_600_000)
    await rig.settle_down()
    assert rig.server().accounts == {}
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    await rig.boot.tidier.tick()
    assert [one.name for one in rig.boot.catalog.connections()] == []
    await rig.crash_and_recover()
    assert rig.boot.catalog.connections() == []


async def test_a_connection_just_deleted_lingers_for_an_issue_under_way(rig: Any, token: Any) -> None:
    """A lease that was begun before the deletion is written down after it, and still ends."""
    gate = rig.hold("before store.reserve")
    asking = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    await rig.boot.catalog.delete_connection("main")
    await rig.boot.tidier.tick()
    gate.opened.set()
    issued = await asking
    rig.heal()
    rig.clock.advance(3_600_000)
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert rig.server().accounts == {}


async def test_tombstones_are_tidied_in_time(rig: Any, token: Any) -> None:
    """A gone lease is remembered for its week, and then its row goes."""
    issued = await rig.issue(token)
    await rig.boot.revoker.revoke(issued.lease_id)
    assert not await rig.boot.tidier.tick()
    assert len(await rig.leases(LeaseState.GONE)) == 1
    rig.clock.advance(604_800_000)
    rig.boot.tidier.start()
    await rig.boot.tidier.tick()
    assert await rig.leases() == []
