"""The engine while its server is slow, gone, full or read-only; and statements that arrive late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.engines.protocol import Extension, NewUser, Origin, User
from broker.errors import DatabaseUnavailable
from broker.model import LeaseNumber, Terms
from broker.secret import Secret
from broker.testing import ports
from broker.testing.postgresql import PostgresServer
from broker.testing.proxy import Proxy
from broker_postgresql import Engine

ORIGIN = Origin(broker="b1", boot="boot1")
BOUND_S = 60
"""More than any call here may take, and less than the time after which a caller would have left."""


@pytest.fixture(scope="module")
def victim(binaries: Any) -> Iterator[PostgresServer]:
    """A server of these tests' own, to be killed, filled and spoiled."""
    with PostgresServer(binaries, extra_config={"fsync": "off", "max_connections": "12"}) as server:
        yield server


@pytest.fixture
async def fragile(victim: PostgresServer) -> Any:
    """That server, running, with nobody's sessions and settings left."""
    await asyncio.to_thread(victim.start)
    yield victim
    await asyncio.to_thread(victim.start)
    # Another database than the one whose settings a test spoils.
    wire = await asyncpg.connect(victim.superuser_dsn("template1").reveal())
    others = "usename <> '' AND pid <> pg_backend_pid()"
    await wire.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
    await wire.execute("ALTER DATABASE postgres RESET ALL")
    await wire.close()


@pytest.fixture
async def engine(fragile: PostgresServer) -> Any:
    """An open engine of that server, as superuser."""
    engine = Engine("fragile", config(fragile), ORIGIN)
    await engine.open()
    yield engine
    await engine.close()


def config(server: PostgresServer, **fields: Any) -> dict[str, Any]:
    """A connection's fields."""
    return {
        "connection_url": server.url_template(),
        "username": server.superuser,
        "password": server.superuser_password.reveal(),
        "scram_iterations": 16,
        **fields,
    }


async def order(engine: Engine, number: int, statements: str = "") -> NewUser:
    """An order for a user that owns nothing."""
    name = engine.user_name("test", "role")
    terms = Terms(creation=(f"CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}'; {statements}",))
    user = User(number=LeaseNumber(number), name=name, identity="", marker=f"broker:v1:b1:{number}:mac", terms=terms)
    return NewUser(user=user, password=await engine.new_password(), lifetime_ms=60_000)


async def every_verb(engine: Engine, user: User) -> list[Exception | None]:
    """What each verb says of one user, raised or answered, in bounded time."""
    wanted = replace(await order(engine, 99), user=user)
    extension = Extension(user=user, lifetime_ms=60_000)
    found: list[Exception | None] = []
    for verb, asked in (
        (engine.health, ()),
        (engine.create, (wanted,)),
        (engine.prepare, ([wanted],)),
        (engine.enable, ([extension],)),
        (engine.extend, ([extension],)),
        (engine.disable, ([user],)),
        (engine.end_sessions, ([user],)),
        (engine.release, ([user],)),
        (engine.drop, ([user],)),
        (engine.prove_absent, ([user],)),
    ):
        try:
            async with asyncio.timeout(BOUND_S):
                answer = await verb(*asked)
        except DatabaseUnavailable as error:
            found.append(error)
        else:
            found.append(answer[0].error if isinstance(answer, list) else None)
    return found


async def removed(engine: Engine, user: User) -> bool:
    """Whether all stages of a revocation succeed."""
    for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
        if any(outcome.error for outcome in await verb([user])):
            return False
    return True


async def root(server: PostgresServer) -> Any:
    """A superuser's session."""
    return await asyncpg.connect(server.superuser_dsn().reveal())


@pytest.fixture
async def watcher(fragile: PostgresServer) -> Any:
    """A superuser's session that looks on."""
    wire = await root(fragile)
    yield wire
    wire.terminate()


async def test_server_that_is_gone(engine: Engine, fragile: PostgresServer) -> None:
    """Every verb says in bounded time that the database is unavailable; when it is back all work, with no opening anew."""
    wanted = await order(engine, 1)
    user = replace(wanted.user, identity=await engine.create(wanted))
    await asyncio.to_thread(fragile.kill)
    assert all(isinstance(error, DatabaseUnavailable) for error in await every_verb(engine, user))
    await asyncio.to_thread(fragile.start)
    assert (await engine.health()).writable
    assert await removed(engine, user)
    await engine.create(await order(engine, 2))


async def test_server_that_restarted(engine: Engine, fragile: PostgresServer) -> None:
    """Connections that a restart closed are noticed before they are used."""
    users = [await order(engine, number) for number in range(1, 4)]
    await asyncio.gather(*(engine.create(each) for each in users))
    before = await engine.health()
    await asyncio.to_thread(fragile.restart)
    assert await engine.create(await order(engine, 4))
    assert (await engine.health()).started != before.started
    for each in users:
        assert await removed(engine, each.user)


async def test_backends_that_were_ended(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """An administrator who ends our sessions hurts no later call."""
    await engine.create(await order(engine, 1))
    kept = [session for lane in (engine._lanes.general, engine._lanes.enabling) for session in lane._idle]
    assert kept
    await watcher.execute("SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE application_name ~ '^broker/'")
    async with asyncio.timeout(BOUND_S):
        # The server says why before it hangs up; in between nobody can tell.
        while not all(session.wire.is_closed() for session in kept):
            await asyncio.sleep(0.01)
    assert await engine.create(await order(engine, 2))


async def test_server_without_free_connections(engine: Engine, fragile: PostgresServer) -> None:
    """Where all slots are taken, the engine says so at once, and works when one is free again."""
    await engine.close()
    # Superusers have slots of their own, so all twelve are to be had.
    taken = [await root(fragile) for _ in range(12)]
    with pytest.raises(DatabaseUnavailable, match=r"too many|slots"):
        await engine.create(await order(engine, 1))
    for wire in taken:
        await wire.close()
    assert await _in_time(engine)


async def _in_time(engine: Engine) -> str:
    """A user, as soon as the server has cleared its slots."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await engine.create(await order(engine, 2))
            except DatabaseUnavailable:
                await asyncio.sleep(0.02)


async def test_server_that_turned_read_only(engine: Engine, fragile: PostgresServer) -> None:
    """A server that takes no writes any more is unavailable, new connections to it too; writable again, it is used again."""
    await engine.create(await order(engine, 1))
    # What a fail-over does to a session that lives on: it can only read.
    async with engine._lanes.general.session() as session:
        await session.wire.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        await engine.create(await order(engine, 2))
    assert await engine.create(await order(engine, 3))


async def test_hosts_are_tried_in_turn(fragile: PostgresServer) -> None:
    """A host that refuses is passed over; where all do, each is named with what it said."""
    with ports.reserve() as held:
        await _try_in_turn(fragile, ports.number_of(held))


async def _try_in_turn(fragile: PostgresServer, other: int) -> None:
    url = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{other},127.0.0.1:{fragile.port}/postgres?sslmode=disable"
    engine = Engine("two", config(fragile, connection_url=url), ORIGIN)
    assert (await engine.open()).writable
    await engine.close()
    nowhere = Engine("none", config(fragile, connection_url=url.replace(f":{fragile.port}/", f":{other}/")), ORIGIN)
    with pytest.raises(DatabaseUnavailable, match=f"127.0.0.1:{other}: "):
        await nowhere.open()
    await nowhere.close()


async def test_silent_host_uses_up_nobodys_time(fragile: PostgresServer) -> None:
    """Each host has a time limit of its own: one that accepts and never answers keeps nobody from the next; alone, it is named."""
    async with Proxy(fragile.host, fragile.port) as silent, Proxy(fragile.host, fragile.port) as other:
        for proxy in (silent, other):
            proxy.stall()
        hosts = f"127.0.0.1:{silent.port},127.0.0.1:{other.port},127.0.0.1:{fragile.port}"
        url = f"postgresql://{{{{username}}}}:{{{{password}}}}@{hosts}/postgres?sslmode=disable&connect_timeout=3"
        engine = Engine("silent", config(fragile, connection_url=url), ORIGIN)
        found = await engine.open()
        assert found.addresses == (f"127.0.0.1:{fragile.port}",)
        await asyncio.to_thread(fragile.kill)
        with pytest.raises(DatabaseUnavailable) as raised:
            await engine.create(await order(engine, 1))
        for proxy in (silent, other):
            assert f"127.0.0.1:{proxy.port}: TimeoutError" in str(raised.value)
        other.resume()
        await asyncio.to_thread(fragile.start)
        assert (await engine.health()).writable
        await engine.close()


async def test_host_of_another_kind_is_passed_over(fragile: PostgresServer) -> None:
    """A host where something else answers, and a name that nobody can look up, keep nobody from the next one."""
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
        left.set()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    hosts = f"broker.invalid:1,127.0.0.1:{port},127.0.0.1:{fragile.port}"
    url = f"postgresql://{{{{username}}}}:{{{{password}}}}@{hosts}/postgres?sslmode=disable&connect_timeout=3"
    engine = Engine("strange", config(fragile, connection_url=url), ORIGIN)
    async with asyncio.timeout(BOUND_S):
        assert (await engine.open()).writable
        await left.wait()
    await engine.close()
    stranger.close()
    await stranger.wait_closed()


async def test_refused_login_names_no_password(fragile: PostgresServer) -> None:
    """A wrong password of our own login is an unavailable database, and the password is not in its text."""
    engine = Engine("wrong", config(fragile, password="wr0ng-secret"), ORIGIN)
    with pytest.raises(DatabaseUnavailable) as caught:
        await engine.open()
    assert "wr0ng" not in str(caught.value)
    await engine.close()


async def test_statement_that_was_given_up_cannot_arrive_late(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """A creation that its caller gave up is ended on the server before the user counts as absent."""
    await watcher.execute("SELECT pg_advisory_lock(77)")
    wanted = await order(engine, 1, "SELECT pg_advisory_xact_lock(77)")
    calling = asyncio.create_task(engine.create(wanted))
    await _until(watcher, "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted", 1)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await removed(engine, wanted.user)
    backends = (
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^DO .broker' AND state = 'active' AND pid <> pg_backend_pid()"
    )
    assert await watcher.fetchval(backends) == 0
    await watcher.execute("SELECT pg_advisory_unlock(77)")
    assert not await watcher.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1::text", wanted.user.name)


async def test_statement_that_was_given_up_and_done_is_undone(engine: Engine, fragile: PostgresServer) -> None:
    """A creation whose answer was never heard, though it was done, is found by its marker and removed."""
    wanted = await order(engine, 1)
    await engine.create(wanted)
    assert await removed(engine, wanted.user)


async def test_statements_of_earlier_boots_are_ended(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """What a dead process of this broker left running is ended before absence counts; another broker's work goes on."""
    await watcher.execute("SELECT pg_advisory_lock(77)")
    dead = Engine("dead", config(fragile), replace(ORIGIN, boot="boot0"))
    stranger = Engine("stranger", config(fragile), replace(ORIGIN, broker="b11"))
    late, theirs = (
        await order(dead, 1, "SELECT pg_advisory_xact_lock(77)"),
        await order(stranger, 2, "SELECT pg_advisory_xact_lock(77)"),
    )
    calls = [asyncio.create_task(dead.create(late)), asyncio.create_task(stranger.create(theirs))]
    await _until(watcher, "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted", 2)
    assert await removed(engine, late.user)
    with pytest.raises(DatabaseUnavailable):
        await calls[0]
    await watcher.execute("SELECT pg_advisory_unlock(77)")
    assert await calls[1]
    assert not await watcher.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1::text", late.user.name)
    for each in (dead, stranger):
        await each.close()


async def _until(watcher: Any, query: str, answer: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while await watcher.fetchval(query) != answer:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8])
async def test_connections_are_bounded(fragile: PostgresServer, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is asked at once, no more connections are open than allowed, and all is done.

    Counted where they are opened: the server shows one that was cut for another moment.
    """
    engine = Engine("bounded", config(fragile, max_open_connections=most), ORIGIN)
    orders = [await order(engine, number) for number in range(1, 13)]
    wires: list[Any] = []
    seen: list[int] = []
    connect: Any = asyncpg.connect

    async def counted(**options: Any) -> Any:
        wires.append(await connect(**options))
        seen.append(sum(not wire.is_closed() for wire in wires))
        return wires[-1]

    monkeypatch.setattr(asyncpg, "connect", counted)
    oids = await asyncio.gather(*(engine.create(each) for each in orders))
    users = [replace(each.user, identity=oid) for each, oid in zip(orders, oids, strict=True)]
    extensions = [Extension(user=user, lifetime_ms=60_000) for user in users]
    await asyncio.gather(engine.enable(extensions), engine.extend(extensions), engine.health(), engine.disable(users))
    assert all([await removed(engine, user) for user in users])
    assert max(seen) <= most
    await engine.close()


async def test_closed_engine_leaves_no_session(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """After `close` the server has no session of ours, also none that was in use meanwhile."""
    await watcher.execute("SELECT pg_advisory_lock(77)")
    calling = asyncio.create_task(engine.create(await order(engine, 1, "SELECT pg_advisory_xact_lock(77)")))
    await _until(watcher, "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted", 1)
    await engine.close()
    await watcher.execute("SELECT pg_advisory_unlock(77)")
    await calling
    await _until(watcher, "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^broker/'", 0)


async def test_enabling_survives_a_slow_creation(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """While every connection for creations waits, prepared users are still turned on and users still removed."""
    prepared = [await order(engine, number) for number in (1, 2)]
    outcomes = await engine.prepare(prepared)
    users = [replace(each.user, identity=outcome.identity) for each, outcome in zip(prepared, outcomes, strict=True)]
    await watcher.execute("SELECT pg_advisory_lock(77)")
    slow = [asyncio.create_task(engine.create(await order(engine, n, "SELECT pg_advisory_xact_lock(77)"))) for n in range(3, 9)]
    await _until(watcher, "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted", 2)
    async with asyncio.timeout(BOUND_S):
        [outcome] = await engine.enable([Extension(user=users[0], lifetime_ms=60_000)])
        assert outcome.error is None
        assert await removed(engine, users[1])
    await watcher.execute("SELECT pg_advisory_unlock(77)")
    await asyncio.gather(*slow)


async def test_settings_of_the_database_do_not_reach_us(engine: Engine, fragile: PostgresServer, watcher: Any) -> None:
    """What the owner of the database sets for it does not change what our statements mean or whether they run."""
    await watcher.execute(
        "CREATE ROLE trap; CREATE SCHEMA evil; CREATE FUNCTION evil.pg_get_userbyid(int) RETURNS name LANGUAGE sql AS"
        " 'SELECT ''trap''::name'; ALTER DATABASE postgres SET search_path = evil, pg_catalog;"
        " ALTER DATABASE postgres SET role = 'trap'; ALTER DATABASE postgres SET default_transaction_read_only = on;"
        " ALTER DATABASE postgres SET client_min_messages = error; ALTER DATABASE postgres SET statement_timeout = 1;"
        " ALTER DATABASE postgres SET standard_conforming_strings = off; ALTER DATABASE postgres SET DateStyle = 'German'"
    )
    fresh = Engine("fresh", config(fragile), ORIGIN)
    wanted = await order(fresh, 1)
    user = replace(wanted.user, identity=await fresh.create(wanted))
    [outcome] = await fresh.enable([Extension(user=user, lifetime_ms=60_000)])
    assert outcome.error is None
    assert await removed(fresh, user)
    await fresh.close()


IMPOSED = {
    "idle_session_timeout": "1",
    "exit_on_error": "on",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "password_encryption": "md5",
    "plpgsql.extra_errors": "all",
    "debug_print_parse": "on",
    "debug_print_rewritten": "on",
    "debug_print_plan": "on",
    "createrole_self_grant": "set, inherit",
    "transaction_timeout": "1",
    "local_preload_libraries": "not_there",
}
"""What a mere owner of a database may set for all who enter it, the broker too."""


@pytest.mark.parametrize("where", ["DATABASE postgres", "ROLE limited"])
async def test_no_setting_of_an_owner_reaches_our_sessions(fragile: PostgresServer, watcher: Any, where: str) -> None:
    """Time limits, traps and debugging output that a database or our login was given are not in force in any session of ours."""
    await watcher.execute("DROP ROLE IF EXISTS limited; CREATE ROLE limited LOGIN CREATEROLE PASSWORD 'limited'")
    logged = len(fragile.log())
    known = {row[0] for row in await watcher.fetch("SELECT name FROM pg_settings")}
    imposed = {name: value for name, value in IMPOSED.items() if name in known or "." in name}
    await watcher.execute(";".join(f"ALTER {where} SET {name} = '{value}'" for name, value in imposed.items()))
    plain = Engine("plain", config(fragile, username="limited", password="limited"), ORIGIN)
    try:
        await plain.open()
        wanted = await order(plain, 1, "SELECT 1")
        user = replace(wanted.user, identity=await plain.create(wanted))
        assert not [name for name, value in imposed.items() if await _in_force(plain, name) in (value, f"{value}ms")]
        assert await removed(plain, user)
        assert "SCRAM-SHA-256" not in fragile.log()[logged:]
    finally:
        await plain.close()
        await watcher.execute("ALTER ROLE limited RESET ALL")


async def _in_force(engine: Engine, name: str) -> str | None:
    async with engine._lanes.revoking.session() as session:
        return str((await session.rows("SELECT current_setting($1, true)", name))[0][0])


async def test_odd_passwords_of_our_own_login(fragile: PostgresServer, watcher: Any) -> None:
    """A login whose name and password need escaping in a URL gets in, in both forms of the connection string."""
    password = "a b@c/d?e#f%25'\\&=:é"
    await watcher.execute(
        'CREATE ROLE "o\'d d@:/" LOGIN SUPERUSER; ALTER ROLE "o\'d d@:/" PASSWORD ' + "'" + password.replace("'", "''") + "'"
    )
    pairs = (
        f"host=127.0.0.1 port={fragile.port} dbname=postgres user='{{{{username}}}}' password={{{{password}}}} sslmode=disable"
    )
    for url in (fragile.url_template(), pairs):
        engine = Engine("odd", config(fragile, connection_url=url, username="o'd d@:/", password=password), ORIGIN)
        assert (await engine.open()).writable
        await engine.close()


def test_secrets_do_not_show_in_an_engine(fragile: PostgresServer) -> None:
    """Neither an engine nor its settings print the connection's password."""
    engine = Engine("quiet", config(fragile, password="hush-hush"), ORIGIN)
    assert "hush" not in f"{engine!r} {engine._settings!r} {engine._lanes._connector.target!r}"
    assert Secret("hush-hush") == engine._settings.password


async def test_no_old_connection_is_trusted_after_one_was_given_up(engine: Engine, watcher: Any) -> None:
    """When a call got no answer, the other connections may lead nowhere too: each is replaced before its next use."""
    async with engine._lanes.enabling.session() as session:
        before = session.greeting.pid
    async with engine._lanes.enabling.session() as session:
        assert session.greeting.pid == before
    await watcher.execute("SELECT pg_advisory_lock(77)")
    calling = asyncio.create_task(engine.create(await order(engine, 1, "SELECT pg_advisory_xact_lock(77)")))
    await _until(watcher, "SELECT count(*) FROM pg_locks WHERE objid = 77 AND NOT granted", 1)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    async with engine._lanes.enabling.session() as session:
        assert session.greeting.pid != before
