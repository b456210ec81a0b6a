"""Revoke: every stage may fail, and every lease that somebody ends is gone in the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import AuditUnavailable, DatabaseUnavailable, EngineError, InvalidRequest, StoreUnavailable
from broker.model import LeaseState, Stage
from broker.testing.engine import OWN

VERBS = ("disable", "end_sessions", "release", "drop", "prove_absent")


async def test_promise_3_revoked_means_gone(rig: Any, token: Any) -> None:
    """When a revocation returns, sessions are over, the user is gone, and the audit log says who, why and how long it took."""
    issued = await rig.issue(token)
    session = rig.server().log_in(issued.username, issued.password)
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert not rig.server().is_open(session)
    lease = await rig.lease(issued.lease_id)
    assert (lease.state, lease.stage) == (LeaseState.GONE, Stage.ABSENT)
    last = rig.entries()[-1]
    assert last["response"]["data"]["username"] == issued.username
    assert last["response"]["secret"]["lease_id"] == issued.lease_id
    with pytest.raises(InvalidRequest, match="invalid lease"):
        await rig.boot.query.lookup(issued.lease_id)


async def test_revoking_twice_or_nothing_succeeds(rig: Any, token: Any) -> None:
    """A lease that is gone, and one that never was, are revoked without an error."""
    issued = await rig.issue(token)
    await asyncio.gather(rig.boot.revoker.revoke(issued.lease_id), rig.boot.revoker.revoke(issued.lease_id))
    await rig.boot.revoker.revoke(issued.lease_id)
    await rig.boot.revoker.revoke("database/creds/app/" + "0" * 24)
    await rig.boot.revoker.revoke("nothing")


async def test_an_asynchronous_revocation_is_durable(rig: Any, token: Any) -> None:
    """Started and then killed at once, a revocation still ends the lease."""
    issued = await rig.issue(token)
    await rig.boot.revoker.start(issued.lease_id)
    await rig.crash_and_recover()
    await rig.settle_down(rounds=2)
    assert rig.server().accounts == {}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [DatabaseUnavailable(), EngineError("no")], ids=["away", "refused"])
async def test_promise_3_a_stage_that_fails_is_tried_again(
    rig: Any, token: Any, verb: str, when: str, error: Exception
) -> None:
    """Whichever stage fails, its caller hears, the login stays off once it was, and the next attempts finish it."""
    issued = await rig.issue(token)
    rig.fail(f"{when} main.{verb}", error, times=2)
    with pytest.raises((DatabaseUnavailable, InvalidRequest)):
        await rig.boot.revoker.revoke(issued.lease_id)
    if verb != "disable":
        assert not rig.can_log_in(issued)
    lease = await rig.lease(issued.lease_id)
    assert lease.state is LeaseState.REVOKING
    assert lease.facts.failure
    assert lease.attempts == (0 if isinstance(error, DatabaseUnavailable) else 1)
    await rig.settle_down()
    await rig.check([issued])
    assert rig.server().accounts == {}


@pytest.mark.parametrize("point", ["store.claim_due", "store.step", "audit.record"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_fails_around_the_database_delays_only(rig: Any, token: Any, point: str, when: str) -> None:
    """A store or audit log that fails during a revocation keeps the work, and it is finished afterwards."""
    issued = await rig.issue(token)
    await rig.boot.revoker.start(issued.lease_id)
    rig.fail(f"{when} {point}", StoreUnavailable() if "store" in point else AuditUnavailable(), times=4)
    await rig.settle_down()
    await rig.check([issued])
    assert rig.server().accounts == {}


async def test_promise_5_taking_access_away_never_waits_for_the_audit_log(rig: Any, token: Any) -> None:
    """With the audit log broken the user goes and only `gone` waits; who waits for it hears that at once."""
    issued = await rig.issue(token)
    rig.boot.device.flushes_left = 0
    with pytest.raises(AuditUnavailable):
        await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert (await rig.lease(issued.lease_id)).state is LeaseState.REVOKING
    rig.heal()
    await rig.settle_down(rounds=3)
    await rig.check([issued])


async def test_a_prefix_ends_all_below_it(rig: Any, token: Any) -> None:
    """A prefix ends at a slash: one role's leases go, those of a role whose name only begins so stay."""
    await rig.role("app2")
    ended = [await rig.issue(token) for _ in range(3)]
    kept = await rig.issue(token, role="app2")
    await rig.boot.revoker.revoke_prefix("database/creds/app/")
    assert set(rig.server().accounts) == {kept.username}
    assert [(await rig.lease(one.lease_id)).state for one in ended] == [LeaseState.GONE] * 3
    await rig.boot.revoker.revoke_prefix("database")
    assert rig.server().accounts == {}


async def test_a_prefix_waits_for_what_was_ending_already(rig: Any, token: Any) -> None:
    """A prefix that returns means that all users below are gone, also those whose revocation had begun and waited."""
    issued = await rig.issue(token)
    rig.fail("before main.drop", EngineError("no"), times=1)
    with pytest.raises(InvalidRequest):
        await rig.boot.revoker.revoke(issued.lease_id)
    await rig.boot.revoker.revoke_prefix("database/creds/app")
    assert rig.server().accounts == {}


async def test_a_prefix_names_the_lease_that_failed(rig: Any, token: Any) -> None:
    """All are tried; the error says which one failed and why."""
    await rig.role("owner", creation_statements=["make", OWN])
    await rig.issue(token)
    owner = await rig.issue(token, role="owner")
    with pytest.raises(InvalidRequest, match=f'failed to revoke "{owner.lease_id}"'):
        await rig.boot.revoker.revoke_prefix("database/creds")
    assert set(rig.server().accounts) == {owner.username}
