"""Many leases weigh on the store alone: neither memory nor a start grows with them."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from broker.model import Lease, LeaseFacts, LeaseState
from broker.store.sqlite.cipher import Cipher, LeaseRow
from broker.store.words import TokenEnd


def _about(role: str) -> int:
    """How many objects in memory stand for a lease of this role."""
    gc.collect()
    things = gc.get_objects()
    leases = [thing for thing in things if isinstance(thing, Lease) and thing.facts.role == role]
    facts = [thing for thing in things if isinstance(thing, LeaseFacts) and thing.role == role]
    return len(leases) + len(facts)


async def test_nothing_in_memory_grows_with_leases(rig: Any, token: Any) -> None:
    """No object, task or timer stands for a lease: not while it lives, and not after all of a token's were revoked at once."""

    async def held() -> tuple[int, int]:
        await rig.expire()
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # asyncio has no other way to ask
        # The time limits of all issues share one, which may be there or not.
        assert sum(not timer.cancelled() for timer in timers) < 10
        return _about("grows"), len(asyncio.all_tasks())

    await rig.role("grows")
    await rig.issue(token, role="grows")
    before = await held()
    known = await rig.leases()
    assert (await held())[0] == before[0] + 2 * len(known)
    del known
    for _ in range(40):
        await rig.issue(token, role="grows")
    assert await held() == before
    await rig.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await rig.settle_down()
    assert rig.server().accounts == {}
    assert await held() == before


async def test_a_start_opens_no_lease_that_has_time(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many leases there are, a start asks the store the same, and reads none of those that are neither due nor half done."""
    opened: list[LeaseRow] = []
    open_lease = Cipher.open_lease

    def counting(cipher: Cipher, row: LeaseRow) -> Lease:
        opened.append(row)
        return open_lease(cipher, row)

    monkeypatch.setattr(Cipher, "open_lease", counting)
    asked = []
    for more in (1, 30):
        for _ in range(more):
            await rig.issue(token)
        await rig.kill()
        opened.clear()
        rig.passed.clear()
        boot = await rig.start()
        await boot.recovery.at_start(boot.highest)
        asked.append(list(rig.passed))
        await rig.expire()
        assert opened == []
    assert asked[0] == asked[1]
    assert len(await rig.leases(LeaseState.ACTIVE)) == len(opened) == 31
