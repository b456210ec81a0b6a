"""The server dies, hangs or restarts while it carries out a statement of the broker: every fault at every moment.

The moment is met by a lock of the test's own: it is taken just before the broker begins the step, the broker's statement is seen to
wait for it on the server, and only then the fault comes. Afterwards, whatever it was: the broker answered meanwhile; what was contained
is so as soon as the server answers; all comes to its end by itself; store, audit log and database agree; and nobody else was harmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from broker import daemon
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.testing.broker import Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.faults import Interposed
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker_postgresql import lanes

LOGIN, PASSWORD = "broker_login", "broker-password-1"
HOME, OTHER = "postgres", "other"
BOUND_S = 60
"""In which the broker has to answer whatever the server does; its own limits below are far shorter."""
LIMIT_S = 60
PATIENCE: dict[str, Any] = {
    "connect_timeout_s": 3,
    "issue_timeout_s": 3,
    "contain_timeout_s": 3,
    "remove_timeout_s": 4,
    "list_timeout_s": 3,
    "breaker": {"first_open_s": 0.2, "longest_open_s": 0.5},
}
SET_UP = f"""
CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}'; GRANT pg_signal_backend TO {LOGIN};
CREATE ROLE readers; CREATE ROLE writers;
GRANT readers, writers TO {LOGIN} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE;
CREATE ROLE stranger LOGIN PASSWORD 'stranger' VALID UNTIL '2100-01-01'
"""
ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that these tests may mistreat, with a plain CREATEROLE login for the broker, who makes users through creators there."""
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries, extra_config={"fsync": "off", "max_wal_senders": "0"}) as server:
        asyncio.run(_set_up(Database(server)))
        yield server


async def _set_up(database: Database) -> None:
    await database.run(SET_UP)
    await database.run(f"CREATE DATABASE {OTHER}")
    wire = await asyncpg.connect(database.server.superuser_dsn(OTHER).reveal())
    await wire.execute(
        "GRANT CREATE ON SCHEMA public TO readers; CREATE TABLE strangers (n int); ALTER TABLE strangers OWNER TO stranger"
    )
    await wire.close()


# moments: what the broker is asked to do, and where in it the server fails --------------------------------------------


@dataclass(frozen=True)
class Moment:
    """The broker's statement that waits: the first one of the engine's `verb` that needs what `lock` holds in `database`."""

    verb: str
    lock: str
    asked: Callable[[Scene, Leased], Coroutine[Any, Any, Any]]
    becomes: Callable[[Scene, Leased], Awaitable[None]]
    database: str = HOME
    contained: bool = False
    """Whether the login was off before it came to that."""


class Trap:
    """Takes the moment's lock once the broker begins the verb, and tells when a statement waits for it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._moment: Moment | None = None
        self._lock = ""
        self._held = asyncio.Event()
        self._holder: Any = None

    def set(self, moment: Moment, leased: Leased | None = None) -> None:
        """From now on the broker is caught when it comes there; the lock may be about this lease's user."""
        self._moment = moment
        self._lock = moment.lock if leased is None else moment.lock.format(user=leased.name, table=leased.table)

    async def before(self, verb: str) -> None:
        """What the engine's verbs pass."""
        moment = self._moment
        if moment is None or verb != moment.verb:
            return
        self._moment = None
        self._holder = await asyncpg.connect(self._server.superuser_dsn(moment.database).reveal())
        await self._holder.execute(f"BEGIN; {self._lock}")
        self._held.set()

    async def caught(self) -> int:
        """The process id of who waits, once somebody does."""
        await self._held.wait()
        found = 0

        async def waits() -> bool:
            nonlocal found
            query = "SELECT min(pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
            found = await self._holder.fetchval(query) or 0
            return bool(found)

        await until(waits, every_s=0.005)
        return found

    def open(self) -> None:
        """Lets go of the lock, where its session lives still."""
        if self._holder is not None:
            self._holder.terminate()


# the scene ------------------------------------------------------------------------------------------------------------


@dataclass
class Leased:
    """A lease whose user has a session open, and a table in the other database."""

    lease_id: str
    login: dict[str, str]
    session: Any

    @property
    def name(self) -> str:
        return self.login["username"]

    @property
    def table(self) -> str:
        return f"of_{self.lease_id.rpartition('/')[2]}"

    async def is_in(self) -> bool:
        """Whether the session goes on."""
        try:
            await self.session.fetchval("SELECT 1")
        except ENDED:
            return False
        return True


@dataclass
class Scene:
    """The broker under test, and what stands behind it."""

    broker: Broker
    server: PostgresServer
    trap: Trap
    stack: AsyncExitStack
    before: set[tuple[Any, ...]] = field(default_factory=set)
    """The server's roles without those of this broker."""

    @property
    def database(self) -> Database:
        return Database(self.server)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer, within the bound."""
        async with asyncio.timeout(BOUND_S):
            return await self.broker.request(method, path, body)

    async def issue(self) -> Leased:
        """A lease whose user is in, and owns something."""
        answer: Any = None

        async def issued() -> bool:
            # On a busy machine even a server that is well may take longer than the broker has patience here.
            nonlocal answer
            answer = await self.ask("GET", "database/creds/app")
            return bool(answer.status == 200)

        await until(issued, limit_s=LIMIT_S)
        login = answer.data
        dsn = self.server.dsn(login["username"], Secret(login["password"]), OTHER)
        session: Any = await asyncpg.connect(dsn.reveal())
        self.stack.callback(session.terminate)
        leased = Leased(answer.body["lease_id"], login, session)
        await session.execute(f'CREATE TABLE "{leased.table}" AS SELECT 1 AS n')
        return leased

    async def answers(self) -> bool:
        """Whether the server takes connections and statements."""
        try:
            return bool(await self.database.ask("SELECT 1"))
        except ENDED:
            return False

    async def state(self, leased: Leased) -> str:
        """Where the lease is in its life; empty when it is gone."""
        shown = await self.ask("PUT", "sys/leases/lookup", {"lease_id": leased.lease_id})
        return str(shown.data["state"]) if shown.status == 200 else ""

    async def roles(self) -> set[tuple[Any, ...]]:
        """All roles, as far as it matters here who may log in."""
        query = "SELECT rolname::text, rolcanlogin, rolcreaterole, rolvaliduntil::text FROM pg_roles"
        return {tuple(row) for row in await self.database.ask(query)}

    def gone(self) -> Counter[str]:
        """How often the audit log says of each user that it is gone."""
        log = self.broker.config.store.directory / "audit.log"
        entries = [json.loads(line) for line in log.read_bytes().splitlines()]
        answers = [
            entry["response"].get("data") or {} for entry in entries if entry["type"] == "response" and "response" in entry
        ]
        return Counter(data["username"] for data in answers if data.get("time_to_dropped_ms") is not None)

    async def is_over(self, leased: Leased) -> None:
        """Waits until the lease is gone, and looks at what that has to mean."""

        async def over() -> bool:
            return not await self.state(leased)

        await until(over, limit_s=LIMIT_S)
        assert not await self.database.has(leased.name)
        assert not await leased.is_in()
        assert self.gone()[leased.name] == 1

    async def is_well(self, leased: Leased) -> None:
        """The lease of somebody else is as it was: login, table and all."""
        assert await self.state(leased) == "active"
        assert await self.database.lets_in(leased.login)
        wire = await asyncpg.connect(self.server.superuser_dsn(OTHER).reveal())
        try:
            assert await wire.fetchval(f'SELECT n FROM "{leased.table}"') == 1
            assert await wire.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'strangers'") == "stranger"
        finally:
            await wire.close()
        assert leased.name not in self.gone()

    async def leaves_nothing(self) -> None:
        """Once all leases are ended the broker has no role but creators under one root, and each user's end was written down once."""
        answer = await self.ask("PUT", "sys/leases/revoke-prefix/database/creds")
        assert answer.status == 204, answer
        broker_id = (await self.ask("GET", "sys/health")).body["cluster_id"]
        ours = f"broker_{broker_id}_"

        async def clean() -> bool:
            return not [row for row in await self.roles() - self.before if not row[0].startswith(ours)]

        await until(clean, limit_s=LIMIT_S)
        assert self.before <= await self.roles()
        created = {row[0].removeprefix(ours) for row in await self.roles() - self.before}
        assert len([name for name in created if "_" not in name]) <= 1, created
        assert set(self.gone().values()) <= {1}


@pytest.fixture
async def scene(
    request: pytest.FixtureRequest, tmp_path: Path, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    """A broker with the role `app`; its statements wait for locks until the server fails."""
    for name in ("_GENERAL", "_REVOKING"):
        monkeypatch.setattr(lanes, name, replace(getattr(lanes, name), lock_timeout_ms=60_000))
    trap = Trap(own_server)
    sweeps = MOMENTS[request.node.callspec.params["moment"]].verb == "sweep"
    content = {"engines": PATIENCE, "leases": {"sweep": 1 if sweeps else 3_600, "reconcile": 0}}
    seams = daemon.Seams(key=MemoryKey(), engine=lambda engine: Interposed(engine, trap.before))
    async with AsyncExitStack() as stack, Broker(tmp_path / "state", content, seams=seams) as broker:
        stack.callback(trap.open)
        made = Scene(broker, own_server, trap, stack)
        made.before = await made.roles()
        fields = connection_to(own_server, username=LOGIN, password=PASSWORD, scram_iterations=16)
        written = await broker.request("PUT", "database/config/pg", fields)
        assert written.status in {200, 204}, written
        for name, group in (("app", "readers"), ("fresh", "writers")):
            role = {"db_name": "pg", "grant_roles": [group], "owned_objects": "drop", "default_ttl": "1h", "rehearse": False}
            written = await broker.request("PUT", f"database/roles/{name}", role)
            assert written.status in {200, 204}, written
        yield made


async def revoke(scene: Scene, leased: Leased) -> None:
    """By request; what can't be done now is remembered."""
    answer = await scene.ask("PUT", "sys/leases/revoke", {"lease_id": leased.lease_id})
    assert answer.status in {204, 503}, answer


async def issue(scene: Scene, leased: Leased) -> None:
    """One more of the role: through a creator of its own, which is not there yet."""
    answer = await scene.ask("GET", "database/creds/fresh")
    assert answer.status in {200, 503}, answer


async def check(scene: Scene, leased: Leased) -> None:
    """The connection; what fails is a step that is named, or the whole."""
    answer = await scene.ask("POST", "database/check/pg")
    assert answer.status in {200, 503}, answer


async def rehearse(scene: Scene, leased: Leased) -> None:
    """A role; one that can't be tried to the end is kept, with a warning."""
    role = {"db_name": "pg", "grant_roles": ["readers"]}
    answer = await scene.ask("PUT", "database/roles/tried", role)
    assert answer.status in {200, 204}, answer


async def reconcile_login(scene: Scene, leased: Leased) -> None:
    """After somebody took a login away that its lease still gives."""
    await scene.database.run(f'ALTER ROLE "{leased.name}" NOLOGIN')
    assert (await reconcile(scene, leased))["amended"] == {}


async def reconcile(scene: Scene, leased: Leased) -> dict[str, Any]:
    """What a run found that puts right what differs."""
    answer = await scene.ask("PUT", "sys/reconcile", {"dry_run": False})
    assert answer.status == 202, answer
    shown: Any = None

    async def ended() -> bool:
        nonlocal shown
        shown = (await scene.ask("GET", "sys/reconcile")).data
        return bool(shown["state"] == "done")

    await until(ended, limit_s=BOUND_S)
    [report] = shown["connections"]
    return dict(report)


async def sweep(scene: Scene, leased: Leased) -> None:
    """The job comes by itself, every second."""


# what has to come of it, once the server is back ----------------------------------------------------------------------


async def is_over(scene: Scene, leased: Leased) -> None:
    """The revocation goes on by itself."""
    await scene.is_over(leased)


async def is_swept(scene: Scene, leased: Leased) -> None:
    """The session of the user that is no more ends; its lease can be ended, too."""

    async def out() -> bool:
        return not await leased.is_in()

    await until(out, limit_s=LIMIT_S)
    await revoke(scene, leased)
    await scene.is_over(leased)


async def is_issued(scene: Scene, leased: Leased) -> None:
    """The next one gets its user, made by a creator."""

    async def issued() -> bool:
        answer = await scene.ask("GET", "database/creds/fresh")
        return answer.status == 200 and await scene.database.lets_in(answer.data)

    await until(issued, limit_s=LIMIT_S)
    await scene.is_well(leased)


async def is_checked(scene: Scene, leased: Leased) -> None:
    """Another check finds nothing wrong."""

    async def passed() -> bool:
        answer = await scene.ask("POST", "database/check/pg")
        return answer.status == 200 and bool(answer.data["ok"])

    await until(passed, limit_s=LIMIT_S)
    await scene.is_well(leased)


async def is_rehearsed(scene: Scene, leased: Leased) -> None:
    """The role was kept, and its next change is tried to the end."""
    assert (await scene.ask("GET", "database/roles/tried")).status == 200

    async def tried() -> bool:
        for groups in (["readers", "writers"], ["readers"]):
            answer = await scene.ask("PUT", "database/roles/tried", {"db_name": "pg", "grant_roles": groups})
            if answer.status != 204:
                return False
        return True

    await until(tried, limit_s=LIMIT_S)
    await scene.is_well(leased)


async def is_compared(scene: Scene, leased: Leased) -> None:
    """Another run is through, and nothing differs any more; the lease is good, as it was before somebody meddled with its user."""

    async def agrees() -> bool:
        report = await reconcile(scene, leased)
        return not report["error"] and not report["found"]

    await until(agrees, limit_s=LIMIT_S)
    await scene.is_well(leased)


ROLES = "LOCK TABLE pg_authid IN SHARE MODE"
MEMBERSHIPS = "LOCK TABLE pg_auth_members IN SHARE MODE"
MARKERS = "LOCK TABLE pg_shdescription IN ACCESS EXCLUSIVE MODE"
SESSIONS = "LOCK TABLE pg_database IN ACCESS EXCLUSIVE MODE"
"""The view of sessions reads it, and so does every login."""
TABLE = 'LOCK TABLE "{table}" IN ACCESS SHARE MODE'
DROPPED_BY_HAND = f'DROP OWNED BY "{{user}}"; DROP ROLE "{{user}}"; COMMIT; BEGIN; {SESSIONS}'

MOMENTS = {
    "login off": Moment("disable", ROLES, revoke, is_over),
    "sessions": Moment("end_sessions", SESSIONS, revoke, is_over, contained=True),
    "release in another database": Moment("release", TABLE, revoke, is_over, database=OTHER, contained=True),
    "drop": Moment("drop", ROLES, revoke, is_over, contained=True),
    "absence": Moment("prove_absent", SESSIONS, revoke, is_over, contained=True),
    "sweep": Moment("sweep", DROPPED_BY_HAND, sweep, is_swept, database=OTHER),
    "creator made": Moment("create", ROLES, issue, is_issued),
    "creator given its groups": Moment("create", MEMBERSHIPS, issue, is_issued),
    "preflight": Moment("preflight", ROLES, check, is_checked),
    "canary made": Moment("create", ROLES, check, is_checked),
    "canary logging in": Moment("log_in", SESSIONS, check, is_checked),
    "canary renewed": Moment("extend", ROLES, check, is_checked),
    "canary turned off": Moment("disable", ROLES, check, is_checked),
    "canary dropped": Moment("drop", ROLES, check, is_checked),
    "rehearsal": Moment("rehearse", ROLES, rehearse, is_rehearsed),
    "reconcile listing": Moment("list_users", MARKERS, reconcile, is_compared),
    "reconcile amending": Moment("enable", ROLES, reconcile_login, is_compared),
}


# faults: each comes at once, and is over with its context -------------------------------------------------------------

Fault: TypeAlias = Callable[[PostgresServer, int], AbstractAsyncContextManager[None]]


def processes(server: PostgresServer) -> list[int]:
    """The server's main process, and all that it started."""
    main = int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    found = [main]
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(main):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def tell(pids: Sequence[int], number: signal.Signals) -> None:
    """Sends a signal to those that live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def killed(server: PostgresServer, pid: int) -> AsyncIterator[None]:
    """All of the server at once, as with its machine; nothing is written."""
    # Stopped, the main process starts nobody else while its others are counted.
    tell(processes(server)[:1], signal.SIGSTOP)
    dead = processes(server)
    tell(dead, signal.SIGKILL)
    await asyncio.to_thread(server.kill)

    async def buried() -> bool:
        return not any(_lives(each) for each in dead)

    await until(buried)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def backend_killed(server: PostgresServer, pid: int) -> AsyncIterator[None]:
    """The broker's own backend, as the kernel does that is out of memory; the server then starts anew by itself."""
    os.kill(pid, signal.SIGKILL)
    yield


@asynccontextmanager
async def frozen(server: PostgresServer, pid: int) -> AsyncIterator[None]:
    """Connections stay open, new ones are accepted by the kernel, and nobody answers; then all goes on as if nothing had been."""
    tell(processes(server)[:1], signal.SIGSTOP)
    tell(processes(server)[1:], signal.SIGSTOP)
    try:
        yield
    finally:
        tell(processes(server), signal.SIGCONT)


@asynccontextmanager
async def restarted(server: PostgresServer, pid: int) -> AsyncIterator[None]:
    """In order, and at once ("fast shutdown")."""
    await asyncio.to_thread(server.restart)
    yield


FAULTS: dict[str, Fault] = {"killed": killed, "backend killed": backend_killed, "frozen": frozen, "restarted": restarted}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_server_that_fails_in_the_middle(scene: Scene, moment: str, fault: str) -> None:
    """Whatever fails where: answered in time, contained at once, done by itself; store, log and database agree, nobody else is harmed."""
    meant, bystander = MOMENTS[moment], await scene.issue()
    leased = await scene.issue()
    scene.trap.set(meant, leased)
    asked = asyncio.create_task(meant.asked(scene, leased))
    waiting = await scene.trap.caught()
    async with FAULTS[fault](scene.server, waiting):
        await asyncio.wait_for(asked, BOUND_S)
    scene.trap.open()
    await until(scene.answers, limit_s=LIMIT_S)
    if meant.contained:
        assert not await scene.database.lets_in(leased.login)
    await meant.becomes(scene, leased)
    await scene.is_well(bystander)
    assert await bystander.is_in() is (fault == "frozen")
    await scene.leaves_nothing()


@pytest.mark.parametrize("moment", ["creator made"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_server_that_fails_while_the_first_creator_is_made(scene: Scene, moment: str, fault: str) -> None:
    """Not even a root is there yet: the next issue makes one, and only one."""
    scene.trap.set(MOMENTS[moment])
    asked = asyncio.create_task(scene.ask("GET", "database/creds/app"))
    waiting = await scene.trap.caught()
    async with FAULTS[fault](scene.server, waiting):
        assert (await asyncio.wait_for(asked, BOUND_S)).status == 503
    scene.trap.open()
    await until(scene.answers, limit_s=LIMIT_S)

    async def issued() -> bool:
        return bool((await scene.ask("GET", "database/creds/app")).status == 200)

    await until(issued, limit_s=LIMIT_S)
    await scene.leaves_nothing()
