"""The server dies, hangs or restarts while it carries out a statement of the broker: every fault at every moment.

The moment is met by a lock of the test's own: it is taken just before the broker begins the step, the broker's statement is seen to
wait for it on the server, and only then the fault comes. Afterwards, whatever it was: the broker answered meanwhile; what was contained
is so as soon as the server answers; all comes to its end by itself; store, audit log and database agree; and nobody else was harmed.

Every pair of moment and fault is met with a plain CREATEROLE login on PostgreSQL 18, where the most has to be done. A superuser's login on
PostgreSQL 15 has no creators, joins nobody and revokes memberships itself: there each moment that differs by that meets one fault, each
fault several moments (`ON_15`). Settings that an owner imposes are in force when a session begins, and after a fault all sessions are new:
one moment for each fault, and handing over, whose session visits the other database (`IMPOSED_ON`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest

from broker.testing import faults
from broker.testing.postgresql import PostgresServer
from broker.testing.trap import Snare

OTHER = "other"
"""The database in which users own something; it is not the connection's own."""


@dataclass(frozen=True)
class Moment:
    """Where the broker is caught (the lock may name the `{user}` and the `{table}` of a lease), with what, and what comes of it."""

    snare: Snare
    asked: Callable[[Any, Any], Coroutine[Any, Any, Any]]
    becomes: Callable[[Any, Any], Awaitable[None]]
    contained: bool = False
    """Whether the login was off before it came to that."""
    role: str = "app"
    prepared: Callable[[Any, Any], Awaitable[None]] | None = None
    """What the leased user does before."""


async def revoke(scene: Any, leased: Any) -> None:
    """By request; what can't be done now is remembered."""
    answer = await scene.ask("PUT", "sys/leases/revoke", {"lease_id": leased.lease_id})
    assert answer.status in {204, 503}, answer


async def issue(scene: Any, leased: Any) -> None:
    """One more of the role, made by who made the others."""
    answer = await scene.ask("GET", "database/creds/app")
    assert answer.status in {200, 503}, answer


async def issue_fresh(scene: Any, leased: Any) -> None:
    """The first one of a role: through a creator of its own, which is not there yet."""
    answer = await scene.ask("GET", "database/creds/fresh")
    assert answer.status in {200, 503}, answer


async def check(scene: Any, leased: Any) -> None:
    """The connection; what fails is a step that is named, or the whole."""
    answer = await scene.ask("POST", "database/check/pg")
    assert answer.status in {200, 503}, answer


async def rehearse(scene: Any, leased: Any) -> None:
    """A role; one that can't be tried to the end is kept, with a warning."""
    role = {"db_name": "pg", "grant_roles": ["readers"]}
    answer = await scene.ask("PUT", "database/roles/tried", role)
    assert answer.status in {200, 204}, answer


async def reconcile_login(scene: Any, leased: Any) -> None:
    """After somebody took a login away that its lease still gives."""
    await scene.database.run(f'ALTER ROLE "{leased.name}" NOLOGIN')
    assert (await reconcile(scene, leased))["amended"] == {}


async def reconcile(scene: Any, leased: Any) -> dict[str, Any]:
    """What a run found that puts right what differs."""
    answer = await scene.ask("PUT", "sys/reconcile", {"dry_run": False})
    assert answer.status == 202, answer
    shown: Any = None

    async def ended() -> bool:
        nonlocal shown
        shown = (await scene.ask("GET", "sys/reconcile")).data
        return bool(shown["state"] == "done")

    await scene.comes(ended)
    [report] = shown["connections"]
    return dict(report)


async def hides(scene: Any, leased: Any) -> None:
    """A login of the user waits on the server."""
    await scene.hides(leased)


async def sweep(scene: Any, leased: Any) -> None:
    """The job comes by itself, every second."""


# what has to come of it, once the server is back ----------------------------------------------------------------------


async def is_over(scene: Any, leased: Any) -> None:
    """The revocation goes on by itself."""
    await scene.is_over(leased)


async def is_handed_over(scene: Any, leased: Any) -> None:
    """What the user owned is the heir's, with all that is in it."""
    await scene.is_over(leased)
    async with scene.superuser(OTHER) as wire:
        assert await wire.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = $1", leased.table) == "keeper"
        assert await wire.fetchval(f'SELECT n FROM "{leased.table}"') == 1
        await wire.execute(f'DROP TABLE "{leased.table}"')


async def is_swept(scene: Any, leased: Any) -> None:
    """The session of the user that is no more ends; its lease can be ended, too."""

    async def out() -> bool:
        return not await leased.is_in()

    await scene.comes(out)
    await revoke(scene, leased)
    await scene.is_over(leased)


async def is_issued(scene: Any, leased: Any) -> None:
    """The next ones of all roles get their users."""

    async def issued() -> bool:
        answers = [await scene.ask("GET", f"database/creds/{role}") for role in ("app", "fresh")]
        return all([answer.status == 200 and await scene.lets_in(answer.data) for answer in answers])

    await scene.comes(issued)
    await scene.is_well(leased)


async def is_checked(scene: Any, leased: Any) -> None:
    """Another check finds nothing wrong."""

    async def passed() -> bool:
        answer = await scene.ask("POST", "database/check/pg")
        return answer.status == 200 and bool(answer.data["ok"])

    await scene.comes(passed)
    await scene.is_well(leased)


async def is_rehearsed(scene: Any, leased: Any) -> None:
    """The role was kept, and its next change is tried to the end."""
    assert (await scene.ask("GET", "database/roles/tried")).status == 200

    async def tried() -> bool:
        for groups in (["readers", "writers"], ["readers"]):
            answer = await scene.ask("PUT", "database/roles/tried", {"db_name": "pg", "grant_roles": groups})
            if answer.status != 204:
                return False
        return True

    await scene.comes(tried)
    await scene.is_well(leased)


async def is_compared(scene: Any, leased: Any) -> None:
    """Another run is through, and nothing differs any more; the lease is good, as it was before somebody meddled with its user."""

    async def agrees() -> bool:
        report = await reconcile(scene, leased)
        return not report["error"] and not report["found"]

    await scene.comes(agrees)
    await scene.is_well(leased)


ROLES = "LOCK TABLE pg_authid IN SHARE MODE"
MEMBERSHIPS = "LOCK TABLE pg_auth_members IN SHARE MODE"
ALL_OF_MEMBERSHIPS = "LOCK TABLE pg_auth_members IN ACCESS EXCLUSIVE MODE"
MARKERS = "LOCK TABLE pg_shdescription IN ACCESS EXCLUSIVE MODE"
SESSIONS = "LOCK TABLE pg_database IN ACCESS EXCLUSIVE MODE"
"""The view of sessions reads it, and so does every login."""
TABLE = 'LOCK TABLE "{table}" IN ACCESS SHARE MODE'
DROPPED_BY_HAND = f'DROP OWNED BY "{{user}}"; DROP ROLE "{{user}}"; COMMIT; BEGIN; {SESSIONS}'
LOOKS_FOR_LOGINS = (
    "SELECT min(pid) FROM pg_stat_activity WHERE application_name LIKE 'broker/%'"
    " AND query LIKE '%virtualtransaction AS attempt%'"
)

MOMENTS = {
    "login off": Moment(Snare("disable", ROLES), revoke, is_over),
    "sessions": Moment(Snare("end_sessions", SESSIONS), revoke, is_over, contained=True),
    "hidden login": Moment(Snare("end_sessions", "", caught=LOOKS_FOR_LOGINS), revoke, is_over, contained=True, prepared=hides),
    "release in another database": Moment(Snare("release", TABLE, OTHER), revoke, is_over, contained=True),
    "handing over in another database": Moment(
        Snare("release", TABLE, OTHER), revoke, is_handed_over, contained=True, role="handed"
    ),
    "drop": Moment(Snare("drop", ROLES), revoke, is_over, contained=True),
    "absence": Moment(Snare("prove_absent", SESSIONS), revoke, is_over, contained=True),
    "sweep": Moment(Snare("sweep", DROPPED_BY_HAND, OTHER), sweep, is_swept),
    "user made": Moment(Snare("create", ROLES), issue, is_issued),
    "creator made": Moment(Snare("create", ROLES), issue_fresh, is_issued),
    "creator given its groups": Moment(Snare("create", MEMBERSHIPS, passes=1), issue_fresh, is_issued),
    "preflight": Moment(Snare("preflight", ROLES), check, is_checked),
    "canary made": Moment(Snare("create", ROLES), check, is_checked),
    "canary logging in": Moment(Snare("log_in", SESSIONS), check, is_checked),
    "canary renewed": Moment(Snare("extend", ROLES), check, is_checked),
    "canary turned off": Moment(Snare("disable", ROLES), check, is_checked),
    "canary dropped": Moment(Snare("drop", ROLES), check, is_checked),
    "rehearsal": Moment(Snare("rehearse", ROLES), rehearse, is_rehearsed),
    "reconcile listing": Moment(Snare("list_users", MARKERS), reconcile, is_compared),
    "reconcile amending": Moment(Snare("enable", ROLES), reconcile_login, is_compared),
}


# faults: each comes at once, and is over with its context -------------------------------------------------------------

Fault: TypeAlias = Callable[[PostgresServer, int], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def backend_killed(server: PostgresServer, pid: int) -> AsyncIterator[None]:
    """The broker's own backend, as the kernel does that is out of memory; the server then starts anew by itself."""
    os.kill(pid, signal.SIGKILL)
    yield


FAULTS: dict[str, Fault] = {
    "killed": lambda server, _: faults.killed(server),
    "backend killed": backend_killed,
    "frozen": lambda server, _: faults.frozen(server),
    "restarted": lambda server, _: faults.restarted(server),
}
ON_15 = [
    ("login off", "killed"),
    ("sessions", "backend killed"),
    ("hidden login", "frozen"),
    ("release in another database", "restarted"),
    ("handing over in another database", "killed"),
    ("drop", "frozen"),
    ("absence", "restarted"),
    ("user made", "backend killed"),
    ("canary logging in", "frozen"),
    ("rehearsal", "killed"),
    ("reconcile amending", "restarted"),
]
IMPOSED_ON = [
    ("login off", "killed"),
    ("hidden login", "frozen"),
    ("handing over in another database", "backend killed"),
    ("creator given its groups", "restarted"),
    ("drop", "backend killed"),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_server_that_fails_in_the_middle(scene: Any, moment: str, fault: str) -> None:
    """Whatever fails where: answered in time, contained at once, done by itself; store, log and database agree, nobody else is harmed."""
    await fails_in_the_middle(scene, moment, fault)


@pytest.mark.parametrize(("moment", "fault"), ON_15)
async def test_old_server_that_fails_in_the_middle(scene_15: Any, moment: str, fault: str) -> None:
    """The same holds for a superuser's login, on a server that says less of memberships."""
    await fails_in_the_middle(scene_15, moment, fault)


@pytest.mark.parametrize(("moment", "fault"), IMPOSED_ON)
async def test_server_with_hostile_settings_that_fails_in_the_middle(hostile_scene: Any, moment: str, fault: str) -> None:
    """The same holds where whoever owns the databases, or manages the broker's login, imposes settings on all sessions."""
    await fails_in_the_middle(hostile_scene, moment, fault)


async def fails_in_the_middle(scene: Any, moment: str, fault: str) -> None:
    """One fault at one moment, and all that has to hold after it."""
    meant, bystander = MOMENTS[moment], await scene.issue()
    leased = await scene.issue(meant.role)
    if meant.prepared is not None:
        await meant.prepared(scene, leased)
    scene.trap.set(replace(meant.snare, lock=meant.snare.lock.format(user=leased.name, table=leased.table)))
    asked = asyncio.create_task(meant.asked(scene, leased))
    waiting = await scene.trap.caught()
    async with FAULTS[fault](scene.server, waiting):
        scene.wears_out()
        await scene.in_time(asked)
    scene.trap.open()
    await scene.comes(scene.answers)
    if meant.contained:
        assert not await scene.lets_in(leased.login)
    await meant.becomes(scene, leased)
    await scene.is_well(bystander)
    assert await bystander.is_in() is (fault == "frozen")
    await scene.leaves_nothing()


@pytest.mark.parametrize(
    ("passes", "fault"),
    [(0, "killed"), *((1, fault) for fault in FAULTS), (2, "killed"), (3, "killed")],
)
@pytest.mark.parametrize("moment", ["creator made"])
async def test_server_that_fails_while_the_first_creator_is_made(scene: Any, moment: str, passes: int, fault: str) -> None:
    """With nothing there, the root, its first creator, or all but the user: the next issue goes on with that, and makes one of each."""
    scene.trap.set(replace(MOMENTS[moment].snare, passes=passes))
    asked = asyncio.create_task(scene.ask("GET", "database/creds/app"))
    waiting = await scene.trap.caught()
    assert len(await scene.roles() - scene.before) == passes
    async with FAULTS[fault](scene.server, waiting):
        assert (await scene.in_time(asked)).status == 503
    scene.trap.open()
    await scene.comes(scene.answers)
    made = await scene.roles() - scene.before

    async def issued() -> bool:
        return bool((await scene.ask("GET", "database/creds/app")).status == 200)

    await scene.comes(issued)
    assert made <= await scene.roles()
    await scene.leaves_nothing()
    assert len(await scene.roles() - scene.before) == 3
