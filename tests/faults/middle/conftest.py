"""The stage: a server that may be mistreated, a broker on it that is caught where a test wants it, and what has to hold in the end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from broker import daemon
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.testing.broker import Broker, connection_to, until
from broker.testing.database import ENDED, Database
from broker.testing.faults import Interposed
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.trap import Trap
from broker_postgresql import hidden, lanes

LOGIN, PASSWORD = "broker_login", "broker-password-1"
HOME, OTHER = "postgres", "other"
APART = "template1"
"""A database on which nothing is imposed."""
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
    async with superuser(database.server, OTHER) as wire:
        await wire.execute(
            "GRANT CREATE ON SCHEMA public TO readers, keeper;"
            "CREATE TABLE strangers (n int); ALTER TABLE strangers OWNER TO stranger"
        )


@asynccontextmanager
async def superuser(server: PostgresServer, database: str) -> AsyncIterator[Any]:
    """A superuser's session in that database."""
    wire = await asyncpg.connect(server.superuser_dsn(database).reveal())
    try:
        yield wire
    finally:
        await wire.close()


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

    def superuser(self, database: str) -> AbstractAsyncContextManager[Any]:
        """A superuser's session in that database."""
        return superuser(self.server, database)

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

    async def comes(self, holds: Callable[[], Awaitable[object]]) -> None:
        """Waits until that is so, however busy the machine is."""
        await until(holds, limit_s=LIMIT_S)

    async def in_time(self, asked: asyncio.Task[Any]) -> Any:
        """What came of a request, within the bound."""
        return await asyncio.wait_for(asked, BOUND_S)

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
        async with self.superuser(OTHER) as wire:
            assert await wire.fetchval(f'SELECT n FROM "{leased.table}"') == 1
            assert await wire.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'strangers'") == "stranger"
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
    content = {"engines": PATIENCE, "leases": {"sweep": 1 if moment == "sweep" else 3_600, "reconcile": 0}}
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
    try:
        await _impose(own_server)
        async with staged(tmp_path, own_server, monkeypatch, moment, UNIMPOSED) as made:
            yield made
    finally:
        # Whatever became of the test: the next one has the same server.
        await _lift(own_server)


async def _impose(server: PostgresServer) -> None:
    async with superuser(server, APART) as wire:
        await wire.execute(f"CREATE ROLE trap; GRANT trap TO {LOGIN}; LOAD 'plpgsql'")
        for name, value in IMPOSED.items():
            # The superuser here is the test.
            await wire.execute(f"ALTER ROLE {server.superuser} SET {name} FROM CURRENT")
            for whose in (f"DATABASE {HOME}", f"DATABASE {OTHER}", f"ROLE {LOGIN}"):
                await wire.execute(f"ALTER {whose} SET {name} = {value}")
    for database in (HOME, OTHER):
        async with superuser(server, database) as wire:
            await wire.execute(
                "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC; CREATE FUNCTION evil.pg_get_userbyid(oid) RETURNS name"
                " LANGUAGE sql AS 'SELECT ''trap''::name'"
            )


async def _lift(server: PostgresServer) -> None:
    for database in (HOME, OTHER):
        async with superuser(server, database) as wire:
            await wire.execute("DROP SCHEMA IF EXISTS evil CASCADE")
    async with superuser(server, APART) as wire:
        for whose in (f"DATABASE {HOME}", f"DATABASE {OTHER}", f"ROLE {LOGIN}", f"ROLE {server.superuser}"):
            await wire.execute(f"ALTER {whose} RESET ALL")
        await wire.execute("DROP ROLE IF EXISTS trap")
