"""A failover that lost the last commits: what it undid is found and put right."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from broker.engines.protocol import Health
from broker.errors import AuditUnavailable, DatabaseUnavailable, InvalidRequest
from broker.leases import failover
from broker.model import LeaseState
from broker.testing.engine import OWN

LINGER_MS = 8 * 24 * 3_600_000
"""Longer than tombstones and deleted connections are kept."""


@pytest.fixture
async def pooled(rig: Any) -> Any:
    """The rig with a role `pooled`, two prepared users, and a timeline that is known."""
    await rig.role("pooled", prepared_users=2)
    await rig.fill()
    await rig.boot.recovery.settle()
    return rig


async def fail_over(rig: Any, timeline: str = "2") -> None:
    """Another server takes over; returns when the check has ended."""
    rig.server().timeline = timeline
    await checked(rig)


async def checked(rig: Any) -> None:
    """One look at the database, and the check that it starts."""
    await rig.boot.recovery.settle()
    await asyncio.gather(*rig.boot.failover._running.values())
    await asyncio.sleep(0)


def found(rig: Any, kind: str) -> float:
    """How much of a kind was counted."""
    value = rig.boot.parts.metrics.failover_findings.labels("main", kind)._value.get()
    return float(value)


async def test_revived_user_is_revoked_again(pooled: Any, token: Any) -> None:
    """A user that was dropped and is back is revoked again; counted and in the audit log."""
    rig = pooled
    issued = await rig.issue(token)
    account = rig.server().accounts[issued.username]
    await rig.boot.revoker.start(issued.lease_id)
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    account.can_login = True
    rig.server().accounts[issued.username] = account
    await fail_over(rig)
    assert (await rig.lease(issued.lease_id)).facts.reason == "brought back by a failover"
    await rig.settle_down()
    assert issued.username not in rig.server().accounts
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert found(rig, "revived") == 1
    reasons = [entry.get("response", {}).get("data", {}).get("reason") for entry in rig.entries()]
    assert "brought back by a failover" in reasons
    assert any(entry["request"]["operation"] == "failover" for entry in rig.entries())


async def test_revived_user_fails_anew(pooled: Any, token: Any) -> None:
    """A revocation that had failed before it succeeded is over: a revived user that can't be dropped fails since now."""
    rig = pooled
    await rig.role("owner", creation_statements=["make", OWN])
    issued = await rig.issue(token, role="owner")
    account = rig.server().accounts[issued.username]
    with pytest.raises(InvalidRequest, match="owns"):
        await rig.boot.revoker.revoke(issued.lease_id)
    account.owns = False
    await rig.boot.revoker.revoke(issued.lease_id)
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    rig.clock.advance(60_000)
    account.owns = True
    rig.server().accounts[issued.username] = account
    await fail_over(rig)
    await rig.expire()
    lease = await rig.lease(issued.lease_id)
    assert lease.facts.failure
    assert lease.facts.failing_since_ms >= rig.clock.now_ms()


async def test_tombstones_of_another_setting_are_recent_all_the_same(pooled: Any, token: Any) -> None:
    """A lease that ended while tombstones were kept for less is looked for as well."""
    rig = pooled
    issued = await rig.issue(token)
    account = rig.server().accounts[issued.username]
    await rig.boot.revoker.start(issued.lease_id)
    await rig.settle_down()
    settings = rig.boot.parts.settings
    rig.boot.parts.settings = settings.model_copy(update={"tombstones": settings.tombstones * 4})
    rig.server().accounts[issued.username] = account
    await fail_over(rig)
    await rig.settle_down()
    assert issued.username not in rig.server().accounts
    assert found(rig, "revived") == 1


async def test_lost_user_ends_its_lease(pooled: Any, token: Any) -> None:
    """A lease whose user is missing ends and says why; others of the same page go on."""
    rig = pooled
    lost, kept = await rig.issue(token), await rig.issue(token)
    del rig.server().accounts[lost.username]
    await fail_over(rig)
    lease = await rig.lease(lost.lease_id)
    assert (lease.state, lease.facts.reason) == (LeaseState.REVOKING, "its user was lost in a failover")
    await rig.settle_down()
    assert rig.can_log_in(kept)
    assert found(rig, "lost") == 1


async def test_lost_prepared_user_is_replaced(pooled: Any, token: Any) -> None:
    """A prepared user that is missing is given up before anybody is to get it."""
    rig = pooled
    name = next(name for name, account in rig.server().accounts.items() if not account.can_login)
    del rig.server().accounts[name]
    await fail_over(rig)
    await rig.settle_down()
    await rig.fill()
    issued = [await rig.issue(token, role="pooled") for _ in range(2)]
    assert all(rig.can_log_in(one) for one in issued)


async def test_lost_login_and_expiry_are_applied_again(pooled: Any, token: Any) -> None:
    """A login that is off and an expiry that is too early are put right; nothing is written where all is well."""
    rig = pooled
    off, early, well = [await rig.issue(token, role="pooled"), await rig.issue(token, role="pooled"), await rig.issue(token)]
    accounts = rig.server().accounts
    accounts[off.username].can_login = False
    accounts[early.username].expires_ms = rig.clock.now_ms() + 2_000
    await fail_over(rig)
    rig.clock.advance(10_000)
    assert all(rig.can_log_in(one) for one in (off, early, well))
    assert found(rig, "restored") == 2
    rig.passed.clear()
    await fail_over(rig, "3")
    assert "before main.enable" not in rig.passed
    assert "before main.extend" not in rig.passed


async def test_revocation_under_way_begins_again(pooled: Any, token: Any) -> None:
    """A login that was off and is on again is turned off, however far the revocation had come, and without its pause."""
    rig = pooled
    issued = await rig.issue(token)
    rig.fail("before main.drop", DatabaseUnavailable(retry_after_s=600), times=1)
    await rig.boot.revoker.start(issued.lease_id)
    await rig.boot.expirer.run()
    await asyncio.gather(*rig.boot.expirer._drains.values())
    rig.server().accounts[issued.username].can_login = True
    await fail_over(rig)
    await rig.settle_down()
    assert issued.username not in rig.server().accounts


async def test_what_can_not_have_been_lost_is_left_alone(pooled: Any, token: Any) -> None:
    """A lease from before the margin is not looked at, one whose user was changed since then is."""
    rig = pooled
    await rig.role("long", default_ttl="10h")
    old = await rig.issue(token, role="long")
    rig.clock.advance(rig.settings.failover_margin * 1_000 - 60_000)
    await rig.boot.recovery.settle()
    rig.clock.advance(120_000)
    await rig.boot.recovery.settle()
    new = await rig.issue(token, role="long")
    for one in (old, new):
        rig.server().accounts[one.username].can_login = False
    await fail_over(rig)
    assert (rig.can_log_in(old), rig.can_log_in(new)) == (False, True)


async def test_failover_while_the_broker_was_down(pooled: Any, token: Any) -> None:
    """The timeline is kept in the store: one that changed meanwhile is noticed at the start, and everything checked."""
    rig = pooled
    issued = await rig.issue(token)
    del rig.server().accounts[issued.username]
    await rig.crash_and_recover()
    await rig.boot.catalog.engine_for(rig.boot.catalog.connections()[0])
    await fail_over(rig)
    assert (await rig.lease(issued.lease_id)).state is LeaseState.REVOKING


@pytest.mark.parametrize("restarted", [False, True])
async def test_superseded_server_is_refused_until_a_reset(pooled: Any, token: Any, *, restarted: bool) -> None:
    """A lower timeline than the stored one ends nothing and serves nobody, also after a restart; a reset has it accepted and checked."""
    rig = pooled
    await rig.role("long", default_ttl="10h")
    issued = await rig.issue(token, role="long")
    rig.clock.advance(rig.settings.failover_margin * 1_000 + 120_000)
    await fail_over(rig)
    await checked(rig)
    del rig.server().accounts[issued.username]
    rig.server().timeline = "1"
    if restarted:
        await rig.crash_and_recover()
    with structlog.testing.capture_logs() as logged:
        await checked(rig)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match="superseded"):
                await rig.issue(token)
            await checked(rig)
    assert [line["found"] for line in logged if line["event"] == "server refused"] == ["1"]
    assert (await rig.lease(issued.lease_id)).state is LeaseState.ACTIVE
    assert rig.boot.catalog.connection("main").timeline == "2"
    with pytest.raises(InvalidRequest, match="superseded"):
        await rig.connection()
    await rig.connection(connection_url="main", verify_connection=False)
    with pytest.raises(DatabaseUnavailable, match="superseded"):
        await rig.issue(token)
    await rig.boot.catalog.reset_connection("main")
    await checked(rig)
    assert rig.boot.catalog.connection("main").timeline == "1"
    assert (await rig.lease(issued.lease_id)).facts.reason == "its user was lost in a failover"
    await rig.issue(token)


@pytest.mark.parametrize("restarted", [False, True])
async def test_deleted_connection_is_reset_by_its_name(rig: Any, token: Any, *, restarted: bool) -> None:
    """Where only a superseded server of a deleted connection is left, its leases wait; a reset of the name has them ended there."""
    issued = await rig.issue(token)
    await checked(rig)
    await fail_over(rig)
    await rig.boot.catalog.delete_connection("main")
    rig.server().timeline = "1"
    if restarted:
        await rig.crash_and_recover()
    await checked(rig)
    await rig.boot.revoker.start(issued.lease_id)
    await rig.expire()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.REVOKING
    assert rig.can_log_in(issued)
    await rig.boot.catalog.reset_connection("main")
    if restarted:
        # The reset is durable before its check is done.
        await rig.crash_and_recover()
    await rig.boot.catalog.engine_for(rig.boot.catalog.connections()[0])
    await checked(rig)
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert issued.username not in rig.server().accounts
    assert rig.boot.catalog.connections()[0].timeline == "1"
    rig.clock.advance(LINGER_MS)
    await rig.settle_down()
    await rig.boot.catalog.purge_retired()
    assert [document.kind for document in await rig.boot.sqlite.changes_since(0) if document.kind != "role"] == []
    with pytest.raises(InvalidRequest, match="failed to find entry"):
        await rig.boot.catalog.reset_connection("main")


async def test_reset_of_a_name_that_is_in_use_leaves_former_connections_alone(pooled: Any, token: Any) -> None:
    """A connection that was made anew under the name of a deleted one is what is reset; the former one's server stays refused."""
    rig = pooled
    issued = await rig.issue(token)
    await fail_over(rig)
    await rig.connection(connection_url="elsewhere")
    rig.server().timeline = "1"
    await checked(rig)
    await rig.boot.catalog.reset_connection("main")
    await rig.boot.revoker.start(issued.lease_id)
    await rig.expire()
    assert rig.can_log_in(issued)
    rig.server().timeline = "2"
    rig.clock.advance(600_000)
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE


async def test_failover_of_a_deleted_connection_is_remembered(pooled: Any, token: Any) -> None:
    """A timeline that a deleted connection came to is known after a restart too: the superseded server is not worked with then."""
    rig = pooled
    issued = await rig.issue(token)
    await rig.boot.catalog.delete_connection("main")
    await fail_over(rig)
    rig.server().timeline = "1"
    await rig.crash_and_recover()
    with pytest.raises(DatabaseUnavailable, match="superseded"):
        await rig.boot.catalog.engine_for(rig.boot.catalog.connections()[0])
    assert (await rig.lease(issued.lease_id)).state is LeaseState.ACTIVE


def lead(rig: Any, *addresses: str, of: tuple[str, ...] = ("a:1", "b:2")) -> None:
    """From now on these of the connection's addresses lead to its server."""
    rig.server().addresses = addresses
    rig.server().others = tuple(address for address in of if address not in addresses)


async def test_other_server_on_the_same_timeline_is_refused_after_a_restart(rig: Any, token: Any) -> None:
    """Which server had the users outlives the process: another one on its timeline is not worked with, ends nothing, until a reset."""
    lead(rig, "a:1")
    issued = await rig.issue(token)
    await checked(rig)
    assert rig.boot.catalog.connection("main").addresses == ("a:1",)
    await rig.crash_and_recover()
    del rig.server().accounts[issued.username]
    lead(rig, "b:2")
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match="b:2 takes writes on timeline 1 as a:1 did, but is another server"):
                await rig.issue(token)
    assert len([line for line in logged if line["event"] == "server refused"]) == 1
    with pytest.raises(InvalidRequest, match="another server"):
        await rig.connection()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.ACTIVE
    await rig.boot.catalog.reset_connection("main")
    await checked(rig)
    assert (await rig.lease(issued.lease_id)).facts.reason == "its user was lost in a failover"
    assert rig.boot.catalog.connection("main").addresses == ("b:2",)
    await rig.crash_and_recover()
    await rig.issue(token)


async def test_further_name_of_the_server_is_remembered(rig: Any, token: Any) -> None:
    """A server that is reached by two addresses is the same one, also when only one of them leads to it after a restart."""
    lead(rig, "a:1")
    issued = await rig.issue(token)
    await checked(rig)
    lead(rig, "a:1", "b:2")
    await checked(rig)
    await rig.crash_and_recover()
    lead(rig, "b:2")
    await rig.issue(token)
    await checked(rig)
    assert rig.can_log_in(issued)
    assert rig.boot.parts.metrics.failovers.labels("main")._value.get() == 0


async def test_address_that_was_taken_off_the_connection_is_done_with(rig: Any, token: Any) -> None:
    """Where the former server is none of the connection's addresses any more the one that is found is meant, and leases are checked."""
    lead(rig, "a:1")
    issued = await rig.issue(token)
    await checked(rig)
    await rig.crash_and_recover()
    del rig.server().accounts[issued.username]
    lead(rig, "b:2", of=("b:2", "c:3"))
    await rig.boot.catalog.engine_for(rig.boot.catalog.connection("main"))
    await checked(rig)
    assert (await rig.lease(issued.lease_id)).facts.reason == "its user was lost in a failover"
    assert rig.boot.catalog.connection("main").addresses == ("b:2",)
    assert rig.boot.parts.metrics.failovers.labels("main")._value.get() == 1
    await checked(rig)
    assert rig.boot.parts.metrics.failovers.labels("main")._value.get() == 1


@pytest.mark.parametrize("where", ["before main.look_up", "before store.move", "before audit.record"])
async def test_check_that_breaks_off_begins_again(pooled: Any, token: Any, where: str) -> None:
    """Whatever fails in the middle, the timeline is not known before all was done, and nothing is counted twice."""
    rig = pooled
    issued = await rig.issue(token)
    del rig.server().accounts[issued.username]
    rig.fail(where, AuditUnavailable() if "audit" in where else DatabaseUnavailable())
    await fail_over(rig)
    assert rig.boot.catalog.connections()[0].timeline == "1"
    rig.heal()
    await checked(rig)
    assert rig.boot.catalog.connections()[0].timeline == "2"
    assert (await rig.lease(issued.lease_id)).state in (LeaseState.REVOKING, LeaseState.GONE)
    assert found(rig, "lost") == 1


async def test_all_pages_are_read(pooled: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many leases there are, each is looked at, a page at a time."""
    rig = pooled
    monkeypatch.setattr(failover, "_PAGE", 2)
    issued = [await rig.issue(token) for _ in range(5)]
    for one in issued:
        del rig.server().accounts[one.username]
    await fail_over(rig)
    assert found(rig, "lost") == 5


async def test_forced_lease_is_not_revoked_again(pooled: Any, token: Any) -> None:
    """A user that an operator took off the books was never said to be gone, and is left alone."""
    rig = pooled
    issued = await rig.issue(token)
    rig.fail("before main.disable", DatabaseUnavailable())
    await asyncio.gather(rig.boot.revoker.forget_prefix(issued.lease_id), rig.boot.expirer.run())
    rig.heal()
    await fail_over(rig)
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE


async def test_concern_is_told_once(pooled: Any) -> None:
    """Two servers that both take writes are an error in the log, once, and again after it was fine."""
    rig = pooled
    connection = rig.boot.catalog.connections()[0]
    health: Health = await (await rig.boot.catalog.engine_for(connection)).health()
    said = []
    for concerns in (("two primaries",), ("two primaries",), (), ("two primaries",)):
        with structlog.testing.capture_logs() as logged:
            await rig.boot.failover.notice(connection, replace(health, concerns=concerns))
        said.append([line["concern"] for line in logged if "concern" in line])
    assert said == [["two primaries"], [], [], ["two primaries"]]
