"""Runs of reconciling: several connections at once, many differences, what a report keeps, and sessions of users that are no more."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from broker.engines.protocol import Seen, Standing, Swept
from broker.errors import DatabaseUnavailable, UserRemains
from broker.leases import differences
from broker.leases.amend import Scope
from broker.leases.reconcile import Reconciler
from broker.leases.report import SHOWN, SHOWN_IN_ALL, unswept
from broker.leases.sweep import Sweeper
from broker.model import Lease, LeaseNumber, LeaseState
from broker.secret import Secret
from broker.testing.broker import until
from broker.testing.engine import MemoryEngine

MANY = 100_000
LIMIT_S = 50


def reconciler_of(rig: Any) -> Reconciler:
    """One over the rig's parts, as the daemon makes it."""
    return Reconciler(rig.boot.parts, Sweeper(rig.boot.parts))


async def run_of(reconciler: Reconciler, scope: Scope, connection: str = "") -> Any:
    """A run to its end."""
    run = reconciler.start(connection, scope)
    await reconciler._task  # type: ignore[misc]  # it was just started
    assert run.ended_ms is not None
    return run


def unknown(rig: Any, name: str, server: str = "main") -> LeaseNumber:
    """A user with a genuine marker, of which the store has no lease."""
    number = LeaseNumber(rig.boot.parts.numbers.next())
    rig.server(server).add(name, rig.boot.parts.markers.marker(number, name))
    return number


# several connections ------------------------------------------------------------------------------------------------------


async def test_connection_that_hangs_delays_no_other(rig: Any) -> None:
    """While one database does not answer, all the others are compared and put right; the one is still under way."""
    names = [f"other{number}" for number in range(6)]
    for name in names:
        await rig.connection(name)
        unknown(rig, f"v-{name}", name)
    gate = rig.hold("before main.health")
    reconciler = reconciler_of(rig)
    run = reconciler.start("", Scope.ALL)
    await gate.entered.wait()

    async def others_compared() -> bool:
        return all(report.amended for report in run.reports if report.connection != "main")

    await until(others_compared, limit_s=LIMIT_S)
    assert run.ended_ms is None
    assert [report.connection for report in run.reports] == [each.name for each in rig.boot.catalog.connections()]
    gate.opened.set()
    await reconciler._task  # type: ignore[misc]  # it was started above
    assert run.ended_ms is not None


async def test_few_connections_are_compared_at_once(rig: Any) -> None:
    """Four at most, however many there are; each is compared in the end."""
    names = [f"other{number}" for number in range(9)]
    gates = {}
    for name in names:
        await rig.connection(name)
        gates[name] = rig.hold(f"before {name}.health")
    reconciler = reconciler_of(rig)
    run = reconciler.start("", Scope.NOTHING)
    most = 0
    while not run.ended_ms:
        held = [name for name, gate in gates.items() if gate.entered.is_set() and not gate.opened.is_set()]
        most = max(most, len(held))
        if held and (len(held) == 4 or sum(gate.opened.is_set() for gate in gates.values()) + len(held) == len(gates)):
            gates[held[0]].opened.set()
        await asyncio.sleep(0)
    assert most == 4
    assert not any(report.error for report in run.reports)
    assert len(run.reports) == len(names) + 1


async def test_connections_to_one_cluster_adopt_a_user_once(rig: Any) -> None:
    """Each lists the users of all; whoever comes second finds them known."""
    for name in ("one", "two", "three"):
        await rig.connection(name, connection_url="shared")
    numbers = [unknown(rig, f"v-{number}", "shared") for number in range(5)]
    run = await run_of(reconciler_of(rig), Scope.ALL)
    assert [report.error for report in run.reports] == ["", "", "", ""]
    assert sum((report.amended for report in run.reports), start=run.reports[0].amended).total() == len(numbers)
    await rig.settle_down()
    assert not rig.server("shared").accounts
    assert {lease.number for lease in await rig.leases(LeaseState.GONE)} == set(numbers)


async def test_failure_of_one_connection_is_told_and_stops_no_other(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that nobody foresaw: a run that broke must not say that database and store agree."""
    await rig.connection("away")
    await rig.connection("odd")
    rig.fail("before away.health", DatabaseUnavailable("away"))
    leases = differences.Comparison.leases

    def odd(comparison: Any) -> Any:
        if comparison.connection.name == "odd":
            raise RuntimeError("a mistake")
        return leases(comparison)

    monkeypatch.setattr(differences.Comparison, "leases", odd)
    unknown(rig, "v-lost")
    with structlog.testing.capture_logs() as logs:
        run = await run_of(reconciler_of(rig), Scope.NOTHING)
    errors = {report.connection: report.error for report in run.reports}
    assert errors["main"] == ""
    assert "away" in errors["away"]
    assert "internal error" in errors["odd"]
    assert "a mistake" not in errors["odd"]
    assert [line["connection"] for line in logs if line["event"] == "reconciling broke"] == ["odd"]
    assert next(report for report in run.reports if report.connection == "main").found.total() == 1


# many differences ---------------------------------------------------------------------------------------------------------


async def test_differences_beyond_the_first_are_counted(rig: Any) -> None:
    """A connection names its first hundred; how many it left out stands beside them."""
    for number in range(SHOWN + 7):
        unknown(rig, f"v-{number}")
    run = await run_of(reconciler_of(rig), Scope.NOTHING)
    [report] = run.reports
    assert (report.found.total(), len(report.named), report.left_out) == (SHOWN + 7, SHOWN, 7)


async def test_named_differences_of_a_run_are_bounded(rig: Any) -> None:
    """However many connections differ, a run names a thousand users; each connection says how many it left out."""
    names = [f"other{number}" for number in range(SHOWN_IN_ALL // SHOWN + 2)]
    for name in names:
        await rig.connection(name)
        for number in range(SHOWN):
            unknown(rig, f"v-{name}-{number}", name)
    run = await run_of(reconciler_of(rig), Scope.NOTHING)
    assert sum(len(report.named) for report in run.reports) == SHOWN_IN_ALL
    assert sum(report.found.total() for report in run.reports) == len(names) * SHOWN
    assert sum(report.left_out for report in run.reports) == 2 * SHOWN


async def test_hundred_thousand_unknown_users_fit_in_a_page(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted one by one, and what a run holds at any time is a small part of what they would take together."""
    markers, lowest = rig.boot.parts.markers, rig.boot.parts.numbers.next()
    blocks: list[int] = []

    async def listed(_: Any) -> AsyncIterator[Seen]:
        for place in range(MANY):
            name, number = f"v-lost-{place}", LeaseNumber(lowest + 1 + place)
            yield Seen(name=name, identity=str(place), marker=markers.marker(number, name), can_login=True)

    async def found(_: Any, users: Any) -> list[Standing]:
        blocks.append(sys.getallocatedblocks())
        return [Standing(number=user.number, identity=user.identity, can_login=True) for user in users]

    monkeypatch.setattr(MemoryEngine, "list_users", listed)
    monkeypatch.setattr(MemoryEngine, "look_up", found)
    # The rig notes each call of the store, which takes more than all else.
    rig.boot.parts.store = rig.boot.sqlite
    run = await run_of(reconciler_of(rig), Scope.NOTHING)
    # Each of them is some ten objects while it is looked at.
    assert max(blocks) - blocks[0] < MANY
    [report] = run.reports
    assert (report.error, report.found.total(), report.left_out) == ("", MANY, MANY - SHOWN)


async def test_databases_are_asked_in_batches_that_they_take(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call carries more users than the engine says; all are found and let in again."""
    token, sizes = await rig.token(), []
    issued = [await rig.issue(token) for _ in range(70)]
    for each in issued:
        rig.server().accounts[each.username].can_login = False
    for verb in ("look_up", "enable"):
        original = getattr(MemoryEngine, verb)

        async def counted(engine: Any, users: Any, original: Any = original) -> Any:
            sizes.append(len(users))
            return await original(engine, users)

        monkeypatch.setattr(MemoryEngine, verb, counted)
    run = await run_of(reconciler_of(rig), Scope.SAFE)
    assert run.reports[0].amended == {"login_off": 70}
    assert max(sizes) == MemoryEngine.traits.users_per_batch
    assert all(rig.can_log_in(each) for each in issued)


async def test_report_keeps_no_lease(rig: Any) -> None:
    """A prepared user's lease has its password, and the last report stays until the next: it names users and nothing else."""
    await rig.role("app", prepared_users=2)
    await rig.fill()
    for lease in await rig.leases(LeaseState.PREPARED):
        rig.server().accounts[lease.facts.username].can_login = True
    reconciler = reconciler_of(rig)
    await run_of(reconciler, Scope.NOTHING)
    latest = reconciler.latest
    assert latest is not None
    assert [named.kind for named in latest.reports[0].named] == ["login_on", "login_on"]
    reached, todo = set(), [*latest.reports]
    while todo:
        thing = todo.pop()
        assert not isinstance(thing, Lease | Secret)
        if id(thing) not in reached and not isinstance(thing, type):
            reached.add(id(thing))
            todo += gc.get_referents(thing)


# clocks, damage, copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_ms", [-600_000, 600_000])
async def test_clock_of_the_database_is_no_difference(rig: Any, ahead_ms: int) -> None:
    """Ends are compared as what is left until then, by each side's own clock: one that is off is not taken for an early end."""

    class Off:
        def now_ms(self) -> int:
            return int(rig.clock.now_ms() + ahead_ms)

    rig.server().clock = Off()
    token = await rig.token()
    kept, early = await rig.issue(token), await rig.issue(token)
    assert not (await run_of(reconciler_of(rig), Scope.NOTHING)).reports[0].found
    rig.server().accounts[early.username].expires_ms -= 120_000
    run = await run_of(reconciler_of(rig), Scope.SAFE)
    assert [(named.kind, named.username) for named in run.reports[0].named] == [("ends_early", early.username)]
    assert not (await run_of(reconciler_of(rig), Scope.NOTHING)).reports[0].found
    assert rig.can_log_in(kept)


async def test_user_of_a_damaged_lease_is_not_unknown(rig: Any) -> None:
    """The store has its lease and can't open it: told as that, touched by nobody, and in no other user's way."""
    issued = await rig.issue(await rig.token())
    number = (await rig.lease(issued.lease_id)).number
    writer: Any = rig.boot.sqlite._writer
    await writer.do(lambda db, _now: db.execute("UPDATE lease SET facts = zeroblob(60) WHERE number = ?", (number,)) and None)
    other = unknown(rig, "v-lost")
    run = await run_of(reconciler_of(rig), Scope.ALL)
    [report] = run.reports
    assert (report.error, report.found) == ("", {"unreadable_lease": 1, "unknown_user": 1})
    assert report.amended == {"unknown_user": 1}
    await rig.expire()
    assert issued.username in rig.server().accounts
    assert (await rig.boot.sqlite.lease(other)).state is not LeaseState.PREPARING


async def test_copy_of_a_marker_does_not_stand_in_for_its_user(rig: Any) -> None:
    """The user of a gone lease goes while it is compared; another one with its marker is still there, and is not taken for it."""
    issued = await rig.issue(await rig.token())
    account = rig.server().accounts[issued.username]
    await rig.boot.revoker.revoke(issued.lease_id)
    rig.server().accounts[issued.username] = account
    rig.server().add("forged", account.marker)
    rig.do("before main.look_up", lambda: rig.server().accounts.pop(issued.username, None))
    run = await run_of(reconciler_of(rig), Scope.ALL)
    assert [(named.kind, named.username) for named in run.reports[0].named] == [("forged_marker", "forged")]
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE


# sessions of users that are no more ---------------------------------------------------------------------------------------


async def test_run_ends_sessions_of_users_that_are_no_more(rig: Any) -> None:
    """A session that outlived its user is counted by a dry run and left, ended by another one, counted, and in the audit log."""
    rig.server().add("dropped", password="p")
    session = rig.server().log_in("dropped", Secret("p"))
    rig.server().remove("dropped")
    reconciler = reconciler_of(rig)
    [dry] = (await run_of(reconciler, Scope.NOTHING)).reports
    assert (dry.sessions_left, dry.sessions_ended, unswept(dry)) == (1, 0, [])
    assert rig.server().is_open(session)
    assert "sweep" not in {entry["request"]["operation"] for entry in rig.entries()}
    [report] = (await run_of(reconciler, Scope.SAFE)).reports
    assert (report.sessions_left, report.sessions_ended) == (0, 1)
    assert not rig.server().is_open(session)
    assert "sweep" in {entry["request"]["operation"] for entry in rig.entries()}


async def test_run_waits_for_a_sweep_under_way_and_sweeps_itself(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that began before may have looked too early."""
    sweeper, asked, sweep = Sweeper(rig.boot.parts), asyncio.Event(), Sweeper.sweep

    async def told(self: Sweeper, connection: Any) -> Any:
        asked.set()
        return await sweep(self, connection)

    monkeypatch.setattr(Sweeper, "sweep", told)
    gate = rig.hold("after main.sweep")
    await sweeper.run()
    await gate.entered.wait()
    rig.server().add("dropped", password="p")
    session = rig.server().log_in("dropped", Secret("p"))
    rig.server().remove("dropped")
    reconciler = Reconciler(rig.boot.parts, sweeper)
    reconciler.start("", Scope.SAFE)
    await asked.wait()
    gate.opened.set()
    await reconciler._task  # type: ignore[misc]  # it was just started
    assert not rig.server().is_open(session)
    assert rig.passed.count("before main.sweep") == 2
    await sweeper.stop()


async def test_sessions_that_go_on_are_told(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one user, with the way out; of a standby that is away; a login without the right is no news while there are none."""
    answers: list[Swept] = [
        Swept(error=UserRemains("may not end sessions", remedy=("GRANT x TO y",))),
        Swept(identity="77", sessions=1, error=UserRemains("sessions go on", remedy=("GRANT x TO y",))),
        Swept(place="standby:1", error=DatabaseUnavailable("does not answer")),
    ]

    async def swept(_: Any) -> list[Swept]:
        return answers

    monkeypatch.setattr(MemoryEngine, "sweep", swept)
    [report] = (await run_of(reconciler_of(rig), Scope.SAFE)).reports
    assert unswept(report) == ["user 77: sessions go on: GRANT x TO y", "standby:1: does not answer"]
    assert (report.sessions_left, report.sessions_ended) == (1, 0)


async def test_dry_run_tells_where_it_could_not_look(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that is away is named, and what goes on elsewhere is counted all the same."""

    async def found(_: Any) -> list[Swept]:
        away = DatabaseUnavailable("does not answer")
        return [
            Swept(identity="77", sessions=2),
            Swept(place="standby:1", error=away),
            Swept(place="s:2", identity="77", sessions=1),
        ]

    monkeypatch.setattr(MemoryEngine, "abandoned", found)
    [report] = (await run_of(reconciler_of(rig), Scope.NOTHING)).reports
    assert (report.sessions_left, report.error) == (3, "")
    assert unswept(report) == ["standby:1: does not answer"]
