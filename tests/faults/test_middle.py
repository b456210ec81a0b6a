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
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import asyncpg
import pytest

from broker import daemon
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.testing import faults
from broker.testing.broker import Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.faults import Interposed
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.trap import Snare, Trap
from broker_postgresql import hidden, lanes

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
ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
ASLEEP_S = 300
"""How long a login hides: far longer than any of these tests takes."""


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that these tests may mistreat, with a plain CREATEROLE login for the broker, who makes users through creators there."""
    binaries = embedded_binaries()
    assert binaries is not None
    yield from _served(
        binaries,
        f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}'; GRANT pg_signal_backend TO {LOGIN};"
        f"GRANT readers, writers TO {LOGIN} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE; GRANT keeper TO {LOGIN}",
    )


@pytest.fixture(scope="module")
def own_server_15(binaries_15: Path) -> Iterator[PostgresServer]:
    """Such a server of PostgreSQL 15, where the broker is a superuser."""
    yield from _served(binaries_15, f"CREATE ROLE {LOGIN} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")


def _served(binaries: Path, login: str) -> Iterator[PostgresServer]:
    with PostgresServer(binaries, extra_config={"fsync": "off", "max_wal_senders": "0"}) as server:
        asyncio.run(_set_up(Database(server), login))
        yield server


async def _set_up(database: Database, login: str) -> None:
    await database.run(
        "CREATE ROLE readers; CREATE ROLE writers; CREATE ROLE keeper;"
        f"CREATE ROLE stranger LOGIN PASSWORD 'stranger' VALID UNTIL '2100-01-01'; {login}"
    )
    await database.run(f"CREATE DATABASE {OTHER}")
    wire = await asyncpg.connect(database.server.superuser_dsn(OTHER).reveal())
    await wire.execute(
        "GRANT CREATE ON SCHEMA public TO readers, keeper;"
        "CREATE TABLE strangers (n int); ALTER TABLE strangers OWNER TO stranger"
    )
    await wire.close()


# moments: what the broker is asked to do, and where in it the server fails --------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Where the broker is caught (the lock may name the `{user}` and the `{table}` of a lease), with what, and what comes of it."""

    snare: Snare
    asked: Callable[[Scene, Leased], Coroutine[Any, Any, Any]]
    becomes: Callable[[Scene, Leased], Awaitable[None]]
    contained: bool = False
    """Whether the login was off before it came to that."""
    role: str = "app"
    prepared: Callable[[Scene, Leased], Awaitable[None]] | None = None
    """What the leased user does before."""


# the scene ------------------------------------------------------------------------------------------------------------


@dataclass
class Leased:
    """A lease whose user has a session open, and a table in the other database."""

    lease_id: str
    login: dict[str, str]
    session: Any
    hiding: asyncio.Future[Any] | None = None
    """A login of the user that sleeps on the server."""
    asleep: frozenset[Any] = frozenset()
    """As what it shows there."""

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
    patch: pytest.MonkeyPatch
    settings: Mapping[str, str] = field(default_factory=dict)
    """With which users log in."""
    before: set[tuple[Any, ...]] = field(default_factory=set)
    """The server's roles without those of this broker."""

    @property
    def database(self) -> Database:
        return Database(self.server)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer, within the bound."""
        async with asyncio.timeout(BOUND_S):
            return await self.broker.request(method, path, body)

    async def connect(self, login: Mapping[str, str], database: str = HOME) -> Any:
        """A session of an issued user."""
        dsn = self.server.dsn(login["username"], Secret(login["password"]), database)
        return await asyncpg.connect(dsn.reveal(), server_settings=dict(self.settings))

    async def lets_in(self, login: Mapping[str, str]) -> bool:
        """Whether an issued user can log in now."""
        try:
            session = await self.connect(login)
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
            return False
        await session.close()
        return True

    async def issue(self, role: str = "app") -> Leased:
        """A lease whose user is in, and owns something."""
        answer: Any = None

        async def issued() -> bool:
            # On a busy machine even a server that is well may take longer than the broker has patience here.
            nonlocal answer
            answer = await self.ask("GET", f"database/creds/{role}")
            return bool(answer.status == 200)

        await until(issued, limit_s=LIMIT_S)
        session = await self.connect(answer.data, OTHER)
        self.stack.callback(session.terminate)
        leased = Leased(answer.body["lease_id"], answer.data, session)
        await session.execute(f'CREATE TABLE "{leased.table}" AS SELECT 1 AS n')
        return leased

    def wears_out(self) -> None:
        """Logins in progress are waited for no longer."""
        self.patch.setattr(hidden, "PATIENCE_S", 0.2)

    async def hides(self, leased: Leased) -> None:
        """A login of the user sleeps after its check, to wake as the group; that is not asked whose it is before `wears_out`."""
        self.patch.setattr(hidden, "PATIENCE_S", LIMIT_S)
        dsn = self.server.dsn(leased.name, Secret(leased.login["password"])).reveal()
        options = quote(f"-c post_auth_delay={ASLEEP_S} -c role=readers", safe="")
        login = asyncpg.connect(f"{dsn}?options={options}", timeout=ASLEEP_S, server_settings=dict(self.settings))
        leased.hiding = asyncio.ensure_future(login)
        self.stack.push_async_callback(self._wake, leased)

        async def asleep() -> bool:
            # The broker's own logins look the same for some milliseconds.
            before = await self._in_progress()
            await asyncio.sleep(0.1)
            leased.asleep = before & await self._in_progress()
            return bool(leased.asleep)

        await until(asleep)

    async def _in_progress(self) -> frozenset[Any]:
        return frozenset(tuple(row) for row in await self.database.ask(hidden.QUERIES["logins_in_progress"]))

    async def _wake(self, leased: Leased) -> None:
        """Whatever is left of it ends."""
        assert leased.hiding is not None
        for pid, _ in leased.asleep & await self._in_progress():
            await self.database.run(f"SELECT pg_terminate_backend({pid})")
        leased.hiding.cancel()
        [ended] = await asyncio.gather(leased.hiding, return_exceptions=True)
        if isinstance(ended, asyncpg.Connection):
            ended.terminate()

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
        if leased.hiding is not None:
            assert leased.asleep
            assert not leased.asleep & await self._in_progress()
            await asyncio.wait({leased.hiding}, timeout=LIMIT_S)
            assert leased.hiding.done()
            with pytest.raises(ENDED):
                await (await leased.hiding).fetchval("SELECT 1")

    async def is_well(self, leased: Leased) -> None:
        """The lease of somebody else is as it was: login, table and all."""
        assert await self.state(leased) == "active"
        assert await self.lets_in(leased.login)
        wire = await asyncpg.connect(self.server.superuser_dsn(OTHER).reveal())
        try:
            assert await wire.fetchval(f'SELECT n FROM "{leased.table}"') == 1
            assert await wire.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'strangers'") == "stranger"
        finally:
            await wire.close()
        assert leased.name not in self.gone()

    async def leaves_nothing(self) -> None:
        """Once all leases are ended the broker has no role but creators under one root, one of which hands on the groups.

        Each user's end was written down once.
        """
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
        assert len([row for row in await self.roles() - self.before if not row[2]]) <= 1, created
        assert set(self.gone().values()) <= {1}


@asynccontextmanager
async def staged(
    directory: Path, server: PostgresServer, patch: pytest.MonkeyPatch, moment: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Scene]:
    """A broker with its roles; its statements wait for locks until the server fails."""
    for name in ("_GENERAL", "_REVOKING"):
        patch.setattr(lanes, name, replace(getattr(lanes, name), lock_timeout_ms=60_000))
    trap = Trap(server)
    sweeps = MOMENTS[moment].snare.verb == "sweep"
    content = {"engines": PATIENCE, "leases": {"sweep": 1 if sweeps else 3_600, "reconcile": 0}}
    seams = daemon.Seams(key=MemoryKey(), engine=lambda engine: Interposed(engine, trap.before))
    async with AsyncExitStack() as stack, Broker(directory / "state", content, seams=seams) as broker:
        stack.callback(trap.open)
        made = Scene(broker, server, trap, stack, patch, settings or {})
        made.before = await made.roles()
        fields = connection_to(server, username=LOGIN, password=PASSWORD, scram_iterations=16)
        written = await broker.request("PUT", "database/config/pg", fields)
        assert written.status in {200, 204}, written
        for name, group, owned in (("app", "readers", "drop"), ("fresh", "writers", "drop"), ("handed", "readers", "reassign")):
            role = {"db_name": "pg", "grant_roles": [group], "owned_objects": owned, "default_ttl": "1h", "rehearse": False}
            heir = {"reassign_to": "keeper"} if owned == "reassign" else {}
            written = await broker.request("PUT", f"database/roles/{name}", {**role, **heir})
            assert written.status in {200, 204}, written
        yield made


@pytest.fixture
async def scene(
    tmp_path: Path, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> AsyncIterator[Scene]:
    """With a plain login on PostgreSQL 18."""
    async with staged(tmp_path, own_server, monkeypatch, moment) as made:
        yield made


@pytest.fixture
async def scene_15(
    tmp_path: Path, own_server_15: PostgresServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> AsyncIterator[Scene]:
    """With a superuser's login on PostgreSQL 15."""
    async with staged(tmp_path, own_server_15, monkeypatch, moment) as made:
        yield made


IMPOSED = {
    "search_path": "evil, pg_catalog",
    "role": "trap",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "client_min_messages": "error",
    "standard_conforming_strings": "off",
    "DateStyle": "German",
    "TimeZone": "'Asia/Kathmandu'",
    "row_security": "off",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "transaction_timeout": "1",
    "idle_session_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "exit_on_error": "on",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "password_encryption": "'md5'",
    "createrole_self_grant": "'set, inherit'",
    "plpgsql.extra_errors": "'all'",
    "local_preload_libraries": "'no_such_library'",
}
"""What an owner of a database may set for all who enter it, and who manages logins for the broker's."""
UNIMPOSED = {
    "search_path": "public",
    "role": "none",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "local_preload_libraries": "",
}
"""With what users log in there that want to work."""


@pytest.fixture
async def hostile_scene(
    tmp_path: Path, own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> AsyncIterator[Scene]:
    """As `scene`, where both databases and the broker's login have settings that hinder whoever has them."""
    chief = own_server.superuser
    async with _apart(own_server) as wire:
        await wire.execute(f"CREATE ROLE trap; GRANT trap TO {LOGIN}; LOAD 'plpgsql'")
        for name, value in IMPOSED.items():
            # The superuser here is the test.
            await wire.execute(f"ALTER ROLE {chief} SET {name} FROM CURRENT")
            for whose in (f"DATABASE {HOME}", f"DATABASE {OTHER}", f"ROLE {LOGIN}"):
                await wire.execute(f"ALTER {whose} SET {name} = {value}")
    for database in (HOME, OTHER):
        wire = await asyncpg.connect(own_server.superuser_dsn(database).reveal())
        await wire.execute(
            "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC; CREATE FUNCTION evil.pg_get_userbyid(oid) RETURNS name"
            " LANGUAGE sql AS 'SELECT ''trap''::name'"
        )
        await wire.close()
    async with staged(tmp_path, own_server, monkeypatch, moment, UNIMPOSED) as made:
        yield made
    for database in (HOME, OTHER):
        wire = await asyncpg.connect(own_server.superuser_dsn(database).reveal())
        await wire.execute("DROP SCHEMA evil CASCADE")
        await wire.close()
    async with _apart(own_server) as wire:
        for whose in (f"DATABASE {HOME}", f"DATABASE {OTHER}", f"ROLE {LOGIN}", f"ROLE {chief}"):
            await wire.execute(f"ALTER {whose} RESET ALL")
        await wire.execute("DROP ROLE trap")


@asynccontextmanager
async def _apart(server: PostgresServer) -> AsyncIterator[Any]:
    """A superuser's session in a database on which nothing is imposed."""
    wire = await asyncpg.connect(server.superuser_dsn("template1").reveal())
    try:
        yield wire
    finally:
        await wire.close()


async def revoke(scene: Scene, leased: Leased) -> None:
    """By request; what can't be done now is remembered."""
    answer = await scene.ask("PUT", "sys/leases/revoke", {"lease_id": leased.lease_id})
    assert answer.status in {204, 503}, answer


async def issue(scene: Scene, leased: Leased) -> None:
    """One more of the role, made by who made the others."""
    answer = await scene.ask("GET", "database/creds/app")
    assert answer.status in {200, 503}, answer


async def issue_fresh(scene: Scene, leased: Leased) -> None:
    """The first one of a role: through a creator of its own, which is not there yet."""
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


async def is_handed_over(scene: Scene, leased: Leased) -> None:
    """What the user owned is the heir's, with all that is in it."""
    await scene.is_over(leased)
    wire = await asyncpg.connect(scene.server.superuser_dsn(OTHER).reveal())
    try:
        assert await wire.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = $1", leased.table) == "keeper"
        assert await wire.fetchval(f'SELECT n FROM "{leased.table}"') == 1
        await wire.execute(f'DROP TABLE "{leased.table}"')
    finally:
        await wire.close()


async def is_swept(scene: Scene, leased: Leased) -> None:
    """The session of the user that is no more ends; its lease can be ended, too."""

    async def out() -> bool:
        return not await leased.is_in()

    await until(out, limit_s=LIMIT_S)
    await revoke(scene, leased)
    await scene.is_over(leased)


async def is_issued(scene: Scene, leased: Leased) -> None:
    """The next ones of all roles get their users."""

    async def issued() -> bool:
        answers = [await scene.ask("GET", f"database/creds/{role}") for role in ("app", "fresh")]
        return all([answer.status == 200 and await scene.lets_in(answer.data) for answer in answers])

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
    "hidden login": Moment(
        Snare("end_sessions", "", caught=LOOKS_FOR_LOGINS), revoke, is_over, contained=True, prepared=Scene.hides
    ),
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
async def test_server_that_fails_in_the_middle(scene: Scene, moment: str, fault: str) -> None:
    """Whatever fails where: answered in time, contained at once, done by itself; store, log and database agree, nobody else is harmed."""
    await fails_in_the_middle(scene, moment, fault)


@pytest.mark.parametrize(("moment", "fault"), ON_15)
async def test_old_server_that_fails_in_the_middle(scene_15: Scene, moment: str, fault: str) -> None:
    """The same holds for a superuser's login, on a server that says less of memberships."""
    await fails_in_the_middle(scene_15, moment, fault)


@pytest.mark.parametrize(("moment", "fault"), IMPOSED_ON)
async def test_server_with_hostile_settings_that_fails_in_the_middle(hostile_scene: Scene, moment: str, fault: str) -> None:
    """The same holds where whoever owns the databases, or manages the broker's login, imposes settings on all sessions."""
    await fails_in_the_middle(hostile_scene, moment, fault)


async def fails_in_the_middle(scene: Scene, moment: str, fault: str) -> None:
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
        await asyncio.wait_for(asked, BOUND_S)
    scene.trap.open()
    await until(scene.answers, limit_s=LIMIT_S)
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
async def test_server_that_fails_while_the_first_creator_is_made(scene: Scene, moment: str, passes: int, fault: str) -> None:
    """With nothing there, the root, its first creator, or all but the user: the next issue goes on with that, and makes one of each."""
    scene.trap.set(replace(MOMENTS[moment].snare, passes=passes))
    asked = asyncio.create_task(scene.ask("GET", "database/creds/app"))
    waiting = await scene.trap.caught()
    assert len(await scene.roles() - scene.before) == passes
    async with FAULTS[fault](scene.server, waiting):
        assert (await asyncio.wait_for(asked, BOUND_S)).status == 503
    scene.trap.open()
    await until(scene.answers, limit_s=LIMIT_S)
    made = await scene.roles() - scene.before

    async def issued() -> bool:
        return bool((await scene.ask("GET", "database/creds/app")).status == 200)

    await until(issued, limit_s=LIMIT_S)
    assert made <= await scene.roles()
    await scene.leaves_nothing()
    assert len(await scene.roles() - scene.before) == 3
