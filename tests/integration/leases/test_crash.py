"""A process that dies at any call: what was begun is finished or undone, and nothing is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.leases.settings import LeaseSettings
from broker.model import LeaseState

Doing = Callable[[Any, list[Any]], Awaitable[None]]


async def _issue(rig: Any, answered: list[Any]) -> None:
    answered.append(await rig.issue(rig.owner))


async def _issue_with_key(rig: Any, answered: list[Any]) -> None:
    answered.append(await rig.issue(rig.owner, key="again"))


async def _hand_out(rig: Any, answered: list[Any]) -> None:
    async def one(key: str) -> None:
        answered.append(await rig.issue(rig.owner, role="pooled", key=key))

    await asyncio.gather(one(""), one("again"), one(""))


async def _refill(rig: Any, answered: list[Any]) -> None:
    await rig.role("pooled", prepared_users=6)
    await rig.fill()


async def _drain(rig: Any, answered: list[Any]) -> None:
    await rig.role("pooled", prepared_users=1)
    await rig.fill()
    await rig.expire()


async def _revoke(rig: Any, answered: list[Any]) -> None:
    await rig.boot.revoker.revoke(rig.standing.lease_id)


async def _expire(rig: Any, answered: list[Any]) -> None:
    rig.clock.advance(3_700_000)
    await rig.expire()


async def _renew(rig: Any, answered: list[Any]) -> None:
    await rig.boot.renewer.renew(rig.standing.lease_id, 7_200)


DOINGS = {
    doing.__name__.lstrip("_"): doing
    for doing in (_issue, _issue_with_key, _hand_out, _refill, _drain, _revoke, _expire, _renew)
}


async def _until_it_dies(rig: Any, doing: Doing, answered: list[Any]) -> bool:
    """Whether it died before it was through."""
    task = asyncio.ensure_future(doing(rig, answered))
    while not task.done() and not rig.dead:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    if task.done() and not task.cancelled():
        task.exception()
    return bool(rig.dead)


@pytest.mark.parametrize("name", DOINGS)
async def test_a_crash_at_any_call_leaves_nothing_behind(name: str, tmp_path: Path, make_rig: Callable[..., Any]) -> None:
    """Killed at its n-th call for every n, each verb leaves only users of active leases or of the pool, and a whole audit log."""
    position = 0
    died = True
    while died:
        rig = await make_rig(tmp_path / str(position), LeaseSettings(refill_batch=4))
        rig.kill_at = position
        answered: list[Any] = []
        died = await _until_it_dies(rig, DOINGS[name], answered)
        standing_kept = name not in ("revoke", "expire")
        await rig.crash_and_recover()
        await rig.settle_down()
        if name == "expire":
            # Without waiting for the dead process' claims to run out.
            assert (await rig.lease(rig.standing.lease_id)).state is LeaseState.GONE
        await rig.check([*answered, rig.standing])
        if standing_kept:
            assert (await rig.lease(rig.standing.lease_id)).state is LeaseState.ACTIVE
            assert rig.can_log_in(rig.standing)
        for issued in answered:
            lease = await rig.lease(issued.lease_id)
            assert lease.state is LeaseState.ACTIVE, (position, rig.passed[-3:])
            assert rig.can_log_in(issued)
        await rig.fill()
        role = rig.boot.catalog.role("pooled")
        assert await rig.boot.sqlite.pool_size("database/creds/pooled") == role.prepared_users
        await rig.stop()
        position += 1
    assert position > 3
