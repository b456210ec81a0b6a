"""Revoke and expire: every stage may fail, and every lease ends."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.errors import AuditUnavailable, DatabaseUnavailable, EngineError, InvalidRequest, StoreUnavailable
from broker.leases import expire, lifecycle, revoke
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState, Stage
from broker.testing.engine import DROP_OWNED, OWN

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
    rig.boot.device.broken = True
    with pytest.raises(AuditUnavailable):
        await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert (await rig.lease(issued.lease_id)).state is LeaseState.REVOKING
    rig.heal()
    await rig.settle_down(rounds=3)
    await rig.check([issued])


async def test_an_owner_is_contained_and_stuck_until_it_can_finish(rig: Any, token: Any) -> None:
    """What is owned is not destroyed: no login, the remedy shown, stuck in the end, and gone once the remedy was applied."""
    await rig.role("owner", creation_statements=["make", OWN])
    issued = await rig.issue(token, role="owner")
    with pytest.raises(InvalidRequest, match="owns"):
        await rig.boot.revoker.revoke(issued.lease_id)
    assert not rig.can_log_in(issued)
    for _ in range(lifecycle.QUICK_ATTEMPTS):
        rig.clock.advance(400_000)
        await rig.expire()
    (stuck,) = await rig.boot.query.stuck(10)
    assert (stuck.lease_id, stuck.state) == (issued.lease_id, "stuck")
    assert stuck.remedy == (f"take what {issued.username} owns",)
    assert stuck.revoke_error
    assert await rig.boot.query.stuck_count() == 1
    with pytest.raises(InvalidRequest, match="failed previous revocation attempts"):
        await rig.boot.renewer.renew(issued.lease_id, 0)
    rig.server().accounts[issued.username].owns = False
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert await rig.boot.query.stuck_count() == 0


async def test_stuck_leases_are_told_of_once_and_measured(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning for those of a batch that became stuck, with reason and remedy; the gauges say how many, and since when the oldest."""
    await rig.role("owner", creation_statements=["make", OWN])
    first, second = [await rig.issue(token, role="owner") for _ in range(2)]
    monkeypatch.setattr(lifecycle, "QUICK_ATTEMPTS", 2)

    def stuck() -> tuple[float, float]:
        registry = rig.boot.parts.metrics.registry
        count, oldest_s = (registry.get_sample_value(f"broker_leases_stuck{end}") for end in ("", "_oldest_seconds"))
        return count, oldest_s

    with capture_logs() as lines:
        await rig.boot.revoker.start_prefix("")
        for _ in range(4):
            await rig.expire()
            rig.clock.advance(1_200_000)
    [told] = [line for line in lines if line["event"] == "leases are stuck"]
    assert (told["log_level"], told["connection"], told["leases"]) == ("warning", "main", 2)
    assert (told["path"], told["username"] in (first.username, second.username)) == ("database/creds/owner", True)
    assert (told["reason"], told["remedy"]) == ("the user owns something", f"take what {told['username']} owns")
    third = await rig.issue(token, role="owner")
    await rig.boot.revoker.start(third.lease_id)
    await rig.expire()
    rig.clock.advance(1_200_000)
    await rig.expire()
    # Nothing is due now: what is being tried again is not stuck for that moment.
    rig.boot.tidier.start()
    assert not await rig.boot.tidier.tick()
    assert stuck() == (3, 6_000)
    for issued in (first, second, third):
        rig.server().accounts[issued.username].owns = False
    await rig.settle_down()
    rig.boot.tidier.start()
    await rig.boot.tidier.tick()
    assert stuck() == (0, 0)


async def test_a_failed_revocation_starts_again_at_the_login(rig: Any, token: Any) -> None:
    """The next attempt turns the login off once more, since it may have been turned on again; the failure keeps its first time."""
    await rig.role("owner", creation_statements=["make", OWN])
    issued = await rig.issue(token, role="owner")
    began_ms = rig.clock.now_ms()
    with pytest.raises(InvalidRequest):
        await rig.boot.revoker.revoke(issued.lease_id)
    rig.server().accounts[issued.username].can_login = True
    rig.clock.advance(10_000)
    await rig.expire()
    assert not rig.can_log_in(issued)
    assert (await rig.lease(issued.lease_id)).facts.failing_since_ms == began_ms


async def test_a_role_may_say_that_owned_objects_go_too(rig: Any, token: Any) -> None:
    """With the role's word the user goes with what it owns, also after the role was deleted."""
    await rig.role("owner", creation_statements=["make", OWN], **{DROP_OWNED: True})
    issued = await rig.issue(token, role="owner")
    await rig.boot.catalog.delete_role("owner")
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}


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


async def test_time_to_disabled_counts_from_the_end_of_the_prefix(rig: Any, token: Any) -> None:
    """A lease that waits behind a busy database counts its waiting: from the moment that its prefix was ended."""
    await rig.issue(token)
    await rig.boot.revoker.start_prefix("database")
    rig.clock.advance(5_000)
    await rig.expire()
    (entry,) = [entry for entry in rig.entries() if "time_to_disabled_ms" in entry.get("response", {}).get("data", {})]
    assert entry["response"]["data"]["time_to_disabled_ms"] == 5_000


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=1_000)])
async def test_one_bad_user_does_not_hold_its_batch(rig: Any, token: Any) -> None:
    """Of ten leases that end together the nine good ones are gone after one look."""
    await rig.role("owner", creation_statements=["make", OWN])
    for _ in range(9):
        await rig.issue(token)
    bad = await rig.issue(token, role="owner")
    rig.clock.advance(3_600_000)
    await rig.expire()
    assert set(rig.server().accounts) == {bad.username}


async def test_a_dead_database_delays_no_other(rig: Any, token: Any) -> None:
    """With one database hanging, another one's leases expire at once."""
    await rig.connection("second")
    await rig.role("second", db_name="second")
    await rig.issue(token)
    await rig.issue(token, role="second")
    gate = rig.hold("before main.disable")
    rig.clock.advance(3_600_000)
    await rig.boot.expirer.run()
    await gate.entered.wait()
    number = rig.boot.catalog.connection("second").number
    await asyncio.gather(*(drain for drained, drain in rig.boot.expirer._drains.items() if drained == number))
    assert rig.server("second").accounts == {}
    assert len(rig.server().accounts) == 1
    gate.opened.set()


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_a_database_that_is_away_is_not_asked_batch_by_batch(rig: Any, token: Any) -> None:
    """One batch finds it away; the backlog behind it is neither claimed nor changed, nor looked at, until its rest is over."""
    for _ in range(7):
        await rig.issue(token)
    rig.fail("before main.disable", DatabaseUnavailable(retry_after_s=5))
    await rig.boot.revoker.start_prefix("")
    await rig.expire()
    for _ in range(5):
        assert await rig.boot.expirer.run() == 5_000
    rig.clock.advance(2_000)
    await rig.connection("second")
    await rig.role("second", db_name="second", default_ttl=1)
    await rig.issue(token, role="second")
    assert await rig.boot.expirer.run() == 1_000
    leases = await rig.leases(LeaseState.REVOKING)
    assert sorted(lease.epoch for lease in leases) == [0, 0, 0, 0, 0, 1, 1]
    assert all(lease.attempts == 0 for lease in leases)
    rig.heal()
    await rig.settle_down()
    assert rig.server().accounts == {}


async def test_a_lease_ends_with_its_time(rig: Any, token: Any) -> None:
    """Nothing happens a millisecond before its time, and the user is gone right after; the reason is on record."""
    issued = await rig.issue(token)
    rig.clock.advance(3_599_999)
    await rig.expire()
    assert rig.can_log_in(issued)
    rig.clock.advance(1)
    await rig.expire()
    assert rig.server().accounts == {}


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
    rig.boot.device.broken = True
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


async def test_lists_show_live_leases(rig: Any, token: Any) -> None:
    """One level at a time; pool users are not shown; a lease's view says what it is and never its password."""
    await rig.role("pooled", prepared_users=2)
    await rig.fill()
    issued = await rig.issue(token)
    query = rig.boot.query
    assert await query.keys_under("") == ["database/"]
    assert await query.keys_under("database/creds/") == ["app/"]
    assert await query.keys_under("database/creds/app") == [issued.lease_id.rpartition("/")[2]]
    assert await query.keys_under("database/creds/nobody") == []
    view = await query.lookup(issued.lease_id)
    assert (view.state, view.ttl_s, view.renewable, view.username) == ("active", 3_600, True, issued.username)
    assert issued.password.reveal() not in repr(view)


async def test_a_claim_outlasts_its_stages(rig: Any, token: Any) -> None:
    """However long the stages take together, each has most of a hold ahead of it, so that nobody else begins the same work."""
    issued = await rig.issue(token)
    ahead: list[int] = []

    async def slow() -> None:
        ahead.append((await rig.lease(issued.lease_id)).due_ms - rig.clock.now_ms())
        rig.clock.advance(299_000)

    for verb in VERBS:
        rig.do(f"before main.{verb}", slow)
    rig.clock.advance((await rig.lease(issued.lease_id)).due_ms - rig.clock.now_ms())
    await rig.expire()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert len(ahead) == len(VERBS)
    assert min(ahead) > 599_000


async def test_a_slow_batch_does_not_put_off_the_next(rig: Any, token: Any, monkeypatch: Any) -> None:
    """While leases are asked for, a drain whose batch took five minutes does not rest a quarter of an hour."""
    first, second = [await rig.issue(token) for _ in range(2)]
    seconds = itertools.count(0, 300)
    monkeypatch.setattr(expire, "stopwatch_s", lambda: next(seconds))
    rig.boot.parts.issuing += 1
    async with asyncio.timeout(20):
        await rig.boot.revoker.revoke(first.lease_id)
        await rig.boot.revoker.revoke(second.lease_id)
    assert rig.server().accounts == {}


class Rests:
    """Stands in for the `asyncio` of the expiry: its rests last until the test ends them, and each batch took a tenth of a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans_s: list[float] = []
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        tenths = itertools.count()
        monkeypatch.setattr(expire, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": self.rest})))
        monkeypatch.setattr(expire, "stopwatch_s", lambda: next(tenths) / 10)

    async def rest(self, span_s: float) -> None:
        self.spans_s.append(span_s)
        self.begun.set()
        await self.over.wait()


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_issuing_has_priority_over_a_backlog(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody waits for a lease a drain rests after its batch, several times as long; then it goes on without one."""
    for _ in range(7):
        await rig.issue(token)
    made, rests = rig.hold("before main.create"), Rests(monkeypatch)
    asking = asyncio.ensure_future(rig.issue(token))
    await made.entered.wait()
    await rig.boot.revoker.start_prefix("")
    async with asyncio.timeout(60):
        await rests.begun.wait()
    assert rests.spans_s[0] >= 0.5
    assert len(await rig.leases(LeaseState.GONE)) == 2
    assert [lease.epoch for lease in await rig.leases(LeaseState.REVOKING)] == [0] * 5
    made.opened.set()
    issued = await asking
    rests.over.set()
    await rig.expire()
    assert len(rests.spans_s) == 1
    assert set(rig.server().accounts) == {issued.username}


@pytest.mark.parametrize("settings", [LeaseSettings(revocation_batch=2)])
async def test_a_backlog_is_worked_off_without_a_rest_when_nobody_asks(
    rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch follows batch."""
    for _ in range(7):
        await rig.issue(token)
    rests = Rests(monkeypatch)
    await rig.boot.revoker.start_prefix("")
    async with asyncio.timeout(60):
        await rig.expire()
    assert rests.spans_s == []
    assert rig.server().accounts == {}
