"""Reconciling: every kind of difference is found, put right as far as told, and nothing that merely changes is taken for one."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import structlog

from broker.errors import AuditUnavailable, DatabaseUnavailable, InvalidRequest, LimitExceeded
from broker.leases.amend import Scope
from broker.leases.reconcile import Reconciler
from broker.leases.sweep import Sweeper
from broker.model import LeaseNumber, LeaseState, Stage
from broker.store.words import Move

NOTHING, SAFE, ALL = Scope.NOTHING, Scope.SAFE, Scope.ALL


async def compare(rig: Any, scope: Scope = NOTHING) -> dict[str, int]:
    """What a run over the connection `main` finds, by kind."""
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    run = reconciler.start("main", scope)
    await reconciler._task  # type: ignore[misc]  # it was just started
    assert run.ended_ms is not None
    [report] = run.reports
    assert not report.error
    return {str(kind): count for kind, count in report.found.items()}


async def gone(rig: Any, token: Any, **state: Any) -> Any:
    """An ended lease whose user is back in the database as it was."""
    issued = await rig.issue(token)
    account = rig.server().accounts[issued.username]
    await rig.boot.revoker.revoke(issued.lease_id)
    rig.server().accounts[issued.username] = account
    return issued


async def test_agreement_is_found_where_there_is_one(rig: Any) -> None:
    """Live, prepared and gone leases with just their users make no difference."""
    await rig.role("app", prepared_users=3)
    await rig.fill()
    token = await rig.token()
    for _ in range(4):
        issued = await rig.issue(token)
    await rig.boot.revoker.revoke(issued.lease_id)
    assert await compare(rig) == {}
    assert rig.boot.parts.metrics.reconcile_found.labels("main", "missing_user")._value.get() == 0


async def test_dry_run_changes_nothing(rig: Any) -> None:
    """Without being told to, every kind is found and left as it is."""
    token = await rig.token()
    back, off, missing = await gone(rig, token), await rig.issue(token), await rig.issue(token)
    rig.server().accounts[off.username].can_login = False
    rig.server().remove(missing.username)
    rig.server().add("forged", f"broker:v1:{rig.boot.sqlite.broker_id}:77:{'0' * 32}")
    before = {lease.number: lease for lease in await rig.leases()}
    assert await compare(rig) == {"user_back": 1, "login_off": 1, "missing_user": 1, "forged_marker": 1}
    assert {lease.number: lease for lease in await rig.leases()} == before
    assert back.username in rig.server().accounts


async def test_user_that_is_back_is_revoked_again(rig: Any) -> None:
    """A user of a gone lease is removed by a revocation of its own, and the audit log names it."""
    back = await gone(rig, await rig.token())
    assert await compare(rig, SAFE) == {"user_back": 1}
    await rig.settle_down()
    assert back.username not in rig.server().accounts
    assert (await rig.lease(back.lease_id)).state is LeaseState.GONE
    told = [
        entry["response"]["data"]
        for entry in rig.entries()
        if entry["request"]["operation"] == "reconcile" and "response" in entry
    ]
    assert [(data["username"], data["reason"]) for data in told] == [(back.username, "user_back")]
    assert await compare(rig) == {}


async def test_lease_without_its_user_is_ended(rig: Any) -> None:
    """A missing user is as good as a revoked one: its lease ends."""
    issued, kept = [await rig.issue(await rig.token()) for _ in range(2)]
    rig.server().remove(issued.username)
    assert await compare(rig, SAFE) == {"missing_user": 1}
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    assert (await rig.lease(issued.lease_id)).facts.reason == "its user was missing"
    assert rig.can_log_in(kept)


async def test_lost_login_is_turned_on_again(rig: Any) -> None:
    """An active lease's user logs in again, until the lease ends; so it is where the database would end it before."""
    off, early = [await rig.issue(await rig.token()) for _ in range(2)]
    rig.server().accounts[off.username].can_login = False
    rig.server().accounts[early.username].expires_ms = rig.clock.now_ms() + 1_000
    assert await compare(rig, SAFE) == {"login_off": 1, "ends_early": 1}
    for issued in (off, early):
        assert rig.can_log_in(issued)
        left_ms = rig.server().accounts[issued.username].expires_ms - rig.clock.now_ms()
        assert left_ms > (issued.ttl_s - 60) * 1_000
    assert await compare(rig) == {}


async def test_no_login_is_turned_on_off_the_record(rig: Any) -> None:
    """What gives access waits for the audit log; what takes it away does not."""
    off, missing = [await rig.issue(await rig.token()) for _ in range(2)]
    rig.server().accounts[off.username].can_login = False
    back = await gone(rig, await rig.token())
    rig.server().remove(missing.username)
    rig.fail("before audit.record", AuditUnavailable())
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    run = reconciler.start("main", SAFE)
    await reconciler._task  # type: ignore[misc]  # it was just started
    assert run.reports[0].error
    assert not rig.can_log_in(off)
    assert (await rig.lease(back.lease_id)).state is LeaseState.REVOKING


async def test_prepared_user_that_can_log_in_is_revoked(rig: Any) -> None:
    """Nobody knows who may know it by now."""
    await rig.role("app", prepared_users=2)
    await rig.fill()
    prepared, other = await rig.leases(LeaseState.PREPARED)
    rig.server().accounts[prepared.facts.username].can_login = True
    assert await compare(rig, SAFE) == {"login_on": 1}
    await rig.settle_down()
    assert list(rig.server().accounts) == [other.facts.username]


async def test_unknown_user_goes_only_when_told_to(rig: Any) -> None:
    """It is reported; told to, an intent under its own number comes first, then the revocation as ever."""
    number = LeaseNumber(rig.boot.parts.numbers.next())
    rig.server().add("v-lost", rig.boot.parts.markers.marker(number, "v-lost"))
    assert await compare(rig, SAFE) == {"unknown_user": 1}
    assert "v-lost" in rig.server().accounts
    rig.passed.clear()
    assert await compare(rig, ALL) == {"unknown_user": 1}
    assert rig.passed.index("after store.prepare") < rig.passed.index("before store.move")
    await rig.settle_down()
    assert "v-lost" not in rig.server().accounts
    assert (await rig.boot.sqlite.lease(number)).state is LeaseState.GONE


@pytest.mark.parametrize("point", ["before store.prepare", "after store.prepare", "before store.move", "after store.move"])
async def test_crash_while_unknown_users_go_loses_none(rig: Any, point: str) -> None:
    """Whenever it dies, the user is found again or removed by the start."""
    number = LeaseNumber(rig.boot.parts.numbers.next())
    rig.server().add("v-lost", rig.boot.parts.markers.marker(number, "v-lost"))
    rig.do(point, lambda: setattr(rig, "dead", True))
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    reconciler.start("main", ALL)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - the process ends here
        await reconciler._task  # type: ignore[misc]  # it was just started
    rig.plans.clear()
    await rig.crash_and_recover()
    if (await rig.boot.sqlite.lease(number)) is None:
        await compare(rig, ALL)
    await rig.settle_down()
    assert "v-lost" not in rig.server().accounts


async def test_user_left_behind_by_force_stays_until_told(rig: Any) -> None:
    """Whoever took the lease off the books is not overruled by the job."""
    issued = await rig.issue(await rig.token())
    lease = await rig.lease(issued.lease_id)
    forced = Move(number=lease.number, expect=(lease.state,), to=LeaseState.GONE, due_in_ms=10**9, stage=Stage.LOGIN_OFF)
    await rig.boot.sqlite.move([forced])
    assert await compare(rig, SAFE) == {"left_behind": 1}
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
    await compare(rig, ALL)
    await rig.settle_down()
    assert issued.username not in rig.server().accounts


@pytest.mark.parametrize("marker", ["77:{zeros}", "0:{zeros}", "x:{zeros}", "77", "99999999999999999999:{zeros}", "{other}"])
async def test_forged_marker_is_never_touched(rig: Any, marker: str) -> None:
    """A wrong code, an impossible number, another user's marker: told, and left alone by every scope."""
    issued = await rig.issue(await rig.token())
    prefix = f"broker:v1:{rig.boot.sqlite.broker_id}:"
    text = marker.format(zeros="0" * 32, other=rig.server().accounts[issued.username].marker.removeprefix(prefix))
    rig.server().add("forged", prefix + text)
    assert await compare(rig, ALL) == {"forged_marker": 1}
    await rig.settle_down()
    assert rig.server().accounts["forged"].can_login
    assert rig.can_log_in(issued)


async def test_change_between_the_looks_is_no_difference(rig: Any) -> None:
    """A user that appears or goes, a lease that ends, while they are compared: nothing is found."""
    token = await rig.token()
    issued = await rig.issue(token)
    account = rig.server().accounts.pop(issued.username)
    rig.do("after main.look_up", lambda: rig.server().accounts.setdefault(issued.username, account))
    assert await compare(rig, SAFE) == {}
    rig.plans.clear()
    back = await gone(rig, token)
    rig.do("before main.look_up", lambda: rig.server().accounts.pop(back.username, None))
    assert await compare(rig, SAFE) == {}
    rig.plans.clear()
    rig.server().accounts.pop(issued.username)
    rig.do("after main.look_up", lambda: rig.boot.revoker.start(issued.lease_id))
    assert await compare(rig, NOTHING) == {}


async def test_busy_and_unfinished_leases_are_left_alone(rig: Any) -> None:
    """A login that is being turned on is off for a moment; an intent may have its user or not."""
    issued = await rig.issue(await rig.token())
    lease = await rig.lease(issued.lease_id)
    rig.server().accounts[issued.username].can_login = False
    with rig.boot.parts.holds.login([lease.number]):
        assert await compare(rig, SAFE) == {}
    await rig.boot.sqlite.move([Move(number=lease.number, expect=(lease.state,), to=LeaseState.REVOKING, due_in_ms=10**9)])
    assert await compare(rig, SAFE) == {}


async def test_store_restored_to_an_older_copy(rig: Any) -> None:
    """Users made since the copy are unknown, those revoked since are missing; told to, both are put right."""
    token = await rig.token()
    old, kept = await rig.issue(token), await rig.issue(token)
    await rig.stop()
    shutil.copytree(rig.directory / "store", rig.directory / "copy")
    await rig.start()
    new = await rig.issue(token)
    await rig.boot.revoker.revoke(old.lease_id)
    await rig.stop()
    shutil.rmtree(rig.directory / "store")
    shutil.move(rig.directory / "copy", rig.directory / "store")
    shutil.move(rig.directory / "audit.log", rig.directory / "audit.old")
    await rig.start()
    assert await compare(rig) == {"unknown_user": 1, "missing_user": 1}
    await compare(rig, ALL)
    await rig.settle_down()
    assert set(rig.server().accounts) == {kept.username}
    assert new.username not in rig.server().accounts
    assert await compare(rig) == {}


async def test_store_restored_to_an_older_copy_hands_nobody_out_twice(rig: Any) -> None:
    """A prepared user that was handed out since the copy has a holder: the next caller gets another, and it is revoked."""
    await rig.role("app", prepared_users=3)
    await rig.fill()
    token = await rig.token()
    await rig.stop()
    shutil.copytree(rig.directory / "store", rig.directory / "copy")
    await rig.start()
    held = await rig.issue(token)
    await rig.stop()
    shutil.rmtree(rig.directory / "store")
    shutil.move(rig.directory / "copy", rig.directory / "store")
    shutil.move(rig.directory / "audit.log", rig.directory / "audit.old")
    await rig.start()
    names = [(await rig.issue(token)).username for _ in range(2)]
    assert len({held.username, *names}) == 3
    assert rig.boot.parts.metrics.registry.get_sample_value("broker_prepared_hits_total", {"role": "app"}) == 2
    await rig.settle_down()
    assert not rig.can_log_in(held)
    assert set(names) <= set(rig.server().accounts)


async def test_job_comes_by_interval_and_says_changes_once(rig: Any) -> None:
    """It runs within five minutes of the start, then about every `leases.reconcile`; the same differences are told once."""
    rig.server().add("forged", f"broker:v1:{rig.boot.sqlite.broker_id}:77:{'0' * 32}")
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    said = []
    for _ in range(3):
        with structlog.testing.capture_logs() as logged:
            await reconciler.run()
        said.append([line["event"] for line in logged if line["event"].startswith("database and store")])
        rig.clock.advance(rig.settings.reconcile * 1_200)
    assert [event for events in said for event in events] == ["database and store differ"]
    assert rig.boot.parts.metrics.reconcile_found.labels("main", "forged_marker")._value.get() == 1


async def test_runs_that_were_asked_for_do_not_pile_up(rig: Any) -> None:
    """A second one is refused while the first goes on; a connection that is none is named."""
    gate = rig.hold("before store.leases_at")
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    reconciler.start("", NOTHING)
    await gate.entered.wait()
    with pytest.raises(LimitExceeded):
        reconciler.start("", NOTHING)
    gate.opened.set()
    await reconciler._task  # type: ignore[misc]  # it was just started
    with pytest.raises(InvalidRequest, match="nowhere"):
        reconciler.start("nowhere", NOTHING)


async def test_database_that_is_away_is_reported_and_nothing_ended(rig: Any) -> None:
    """No lease is taken for one without a user because nobody could be asked."""
    issued = await rig.issue(await rig.token())
    rig.fail("before main.look_up", DatabaseUnavailable("away"))
    rig.server().accounts.pop(issued.username)
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    run = reconciler.start("main", ALL)
    await reconciler._task  # type: ignore[misc]  # it was just started
    assert "away" in run.reports[0].error
    assert (await rig.lease(issued.lease_id)).state is LeaseState.ACTIVE


async def test_what_is_wrong_in_the_database_is_told_once(rig: Any) -> None:
    """Each of the engine's sentences is logged when it is new, counted at every look, and forgotten when it is no longer true."""
    reconciler, server = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts)), rig.server()
    gauge = rig.boot.parts.metrics.reconcile_concerns.labels("main")

    async def told() -> list[str]:
        with structlog.testing.capture_logs() as logs:
            run = reconciler.start("main", SAFE)
            await reconciler._task  # type: ignore[misc]  # it was just started
        assert not run.reports[0].error
        assert list(run.reports[0].concerns) == server.concerns
        assert gauge._value.get() == len(server.concerns)
        return [entry["concern"] for entry in logs if entry["event"] == "database needs care"]

    server.concerns = ["a is full"]
    assert await told() == ["a is full"]
    server.concerns = ["a is full", "b is full"]
    assert await told() == ["b is full"]
    server.concerns = []
    assert await told() == []
    server.concerns = ["a is full"]
    assert await told() == ["a is full"]


async def test_database_that_can_not_be_looked_into_is_compared(rig: Any) -> None:
    """What goes wrong while looking for trouble is told, and the differences that were found count all the same."""
    issued = await rig.issue(await rig.token())
    rig.server().remove(issued.username)
    rig.fail("before main.inspect", DatabaseUnavailable("the catalogue is too large"))
    reconciler = Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))
    run = reconciler.start("main", NOTHING)
    await reconciler._task  # type: ignore[misc]  # it was just started
    [report] = run.reports
    assert (report.found.total(), report.error) == (1, "")
    assert report.concerns == ("the database could not be looked into: the catalogue is too large",)
