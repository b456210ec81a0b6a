"""A real primary with a hot standby: sessions there end with the revocation, or the revocation says why they could not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from broker.engines.protocol import Extension, User
from broker.errors import UserRemains
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer
from broker.testing.proxy import Proxy
from broker.testing.standby import Standby
from broker_postgresql import hidden, standbys

LIMIT_S = 30
CLOSED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@pytest.fixture(scope="module")
def standby(prepared_server: PostgresServer) -> Iterator[Standby]:
    """A hot standby of the server."""
    with Standby(prepared_server) as server:
        yield server


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins count as ordinary for a shorter time, a standby that was away is asked again soon, and a slow machine has its time."""
    monkeypatch.setattr(hidden, "PATIENCE_S", 0.2)
    monkeypatch.setattr(standbys, "_FIRST_AWAY_S", 0.02)
    monkeypatch.setattr(standbys, "_LONGEST_AWAY_S", 0.05)
    for limit in ("_LAG_S", "_LIMIT_S", "_PATIENCE_S"):
        monkeypatch.setattr(standbys, limit, float(LIMIT_S))


@dataclass
class Pair:
    """A scene whose engine knows the standby, and a superuser's session there."""

    scene: Any
    standby: Standby
    there: Any

    async def session(self, name: str, password: Secret, database: str = "app", **settings: str) -> Any:
        """A user's session on the standby, once the user has arrived there."""
        dsn = self.standby.dsn(name, password, database).reveal()
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    wire = await asyncpg.connect(dsn, server_settings=settings)
                except asyncpg.InvalidAuthorizationSpecificationError:
                    await asyncio.sleep(0.02)
                    continue
                self.scene.stack.callback(wire.terminate)
                return wire

    async def arrived(self) -> None:
        """Waits until the standby has replayed all that the primary has written."""
        lsn = await self.scene.root.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        async with asyncio.timeout(LIMIT_S):
            while not await self.there.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn):
                await asyncio.sleep(0.02)


@pytest.fixture
async def pair(scene: Any, standby: Standby) -> AsyncIterator[Pair]:
    """The scene with an engine that names the standby."""
    standby.start()
    scene.engine = await scene.another_engine(standbys=[f"{standby.host}:{standby.port}"])
    there = await asyncpg.connect(standby.superuser_dsn("app").reveal())
    yield Pair(scene, standby, there)
    there.terminate()
    standby.start()


async def until_gone(scene: Any, users: Sequence[User]) -> None:
    """Revokes until every stage succeeds for every user, as the broker would: a standby that was away takes a moment to be back."""
    async with asyncio.timeout(LIMIT_S):
        while not gone(await scene.remove(users)):
            await asyncio.sleep(0.02)


def gone(said: dict[str, list[Exception | None]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def test_sessions_on_the_standby_end(pair: Pair) -> None:
    """A session there that reads through its group is ended by the revocation; a stranger's goes on."""
    scene = pair.scene
    user, password = await scene.create()
    other, word = await scene.create()
    wires = [await pair.session(user.name, password, database) for database in ("app", "other")]
    kept = await pair.session(other.name, word)
    for wire in wires:
        await wire.execute("SET ROLE readers")
        assert await wire.fetchval("SELECT name FROM goods") == "lamp"
    assert gone(await scene.remove([user]))
    for wire in wires:
        with pytest.raises(CLOSED):
            await wire.fetchval("SELECT name FROM goods")
    assert await kept.fetchval("SELECT name FROM goods") == "lamp"
    assert not await pair.there.fetchval("SELECT count(*) FROM pg_roles WHERE oid = $1", int(user.identity))


async def test_hidden_login_on_the_standby_ends(pair: Pair) -> None:
    """A login that sleeps past its check on the standby is ended there; one of a stranger's wakes and works."""
    scene, standby = pair.scene, pair.standby
    user, password = await scene.create()
    other, word = await scene.create()
    await (await pair.session(user.name, password)).close()
    await (await pair.session(other.name, word)).close()

    def attack(name: str, secret: Secret, delay_s: int) -> asyncio.Task[Any]:
        dsn = standby.dsn(name, secret, "app").reveal()
        options = f"-c%20post_auth_delay%3D{delay_s}%20-c%20role%3Dreaders"
        return asyncio.ensure_future(asyncpg.connect(f"{dsn}?options={options}", timeout=LIMIT_S))

    logins = [attack(user.name, password, 25), attack(other.name, word, 3)]
    async with asyncio.timeout(LIMIT_S):
        while len(await pair.there.fetch(hidden.QUERIES["logins_in_progress"])) < 2:
            await asyncio.sleep(0.02)
    assert gone(await scene.remove([user]))
    with pytest.raises(CLOSED):
        # The server may finish its greeting before it notices that it was told to end.
        await (await logins[0]).fetchval("SELECT name FROM goods")
    wire = await logins[1]
    assert await wire.fetchval("SELECT name FROM goods") == "lamp"
    await wire.close()


async def test_who_may_not_ask_on_a_standby_is_told_so(pair: Pair) -> None:
    """Where users may not call what ends sessions, a login there can't be told apart; the statement told, run on the primary, helps."""
    scene, standby = pair.scene, pair.standby
    user, password = await scene.create()
    await (await pair.session(user.name, password)).close()
    dsn, options = standby.dsn(user.name, password, "app").reveal(), "-c%20post_auth_delay%3D25%20-c%20role%3Dreaders"
    login = asyncio.ensure_future(asyncpg.connect(f"{dsn}?options={options}", timeout=LIMIT_S))
    function = "FUNCTION pg_terminate_backend(int, bigint)"
    await scene.root.execute(f"REVOKE EXECUTE ON {function} FROM PUBLIC; GRANT EXECUTE ON {function} TO limited")
    try:
        await pair.arrived()
        async with asyncio.timeout(LIMIT_S):
            while not await pair.there.fetch(hidden.QUERIES["logins_in_progress"]):
                await asyncio.sleep(0.02)
        await scene.engine.disable([user])
        [ended] = await scene.engine.end_sessions([user])
        assert isinstance(ended.error, UserRemains)
        assert "a login in progress that may be the user's" in str(ended.error)
        [remedy] = ended.error.remedy
        await scene.root.execute(remedy)
        await until_gone(scene, [user])
        assert not await pair.there.fetch(hidden.QUERIES["logins_in_progress"])
    finally:
        await scene.root.execute(f"GRANT EXECUTE ON {function} TO PUBLIC; REVOKE EXECUTE ON {function} FROM limited")
    with pytest.raises(CLOSED):
        await (await login).fetchval("SELECT name FROM goods")


async def test_idle_servers_show_no_login_in_progress(pair: Pair) -> None:
    """Neither what replays the log nor whatever else works in the background is taken for a login, which would cost each batch a second."""
    for wire in (pair.there, pair.scene.root):
        async with asyncio.timeout(LIMIT_S):
            while await wire.fetch(hidden.QUERIES["logins_in_progress"]):
                await asyncio.sleep(0.02)


def replicating(server: PostgresServer, name: str, password: Secret, delay_s: int) -> asyncio.Task[Any]:
    """A login for physical replication that sleeps for so long after its check."""
    dsn = server.dsn(name, password).reveal()
    settings = {"replication": "true", "post_auth_delay": str(delay_s)}
    return asyncio.ensure_future(asyncpg.connect(dsn, server_settings=settings, timeout=2 * LIMIT_S))


@pytest.mark.parametrize("where", ["primary", "standby"])
async def test_hidden_login_for_replication_ends(pair: Pair, where: str) -> None:
    """A login for physical replication, which enters no database and would read all of them, is found asleep; a stranger's goes on."""
    scene, server = pair.scene, pair.standby if where == "standby" else pair.scene.place.server
    user, password = await scene.create()
    other, word = await scene.create()
    for name in (user.name, other.name):
        await scene.root.execute(f'ALTER ROLE "{name}" REPLICATION')
    await pair.arrived()
    opened = await replicating(server, user.name, password, 0)
    await opened.execute("IDENTIFY_SYSTEM")
    logins = [replicating(server, user.name, password, 25), replicating(server, other.name, word, 3)]
    there = pair.there if where == "standby" else scene.root
    async with asyncio.timeout(LIMIT_S):
        while len(await there.fetch(hidden.QUERIES["logins_in_progress"])) < 2:
            await asyncio.sleep(0.02)
    if scene.place.limited and not scene.place.new:
        # Up to 15 a plain login may not touch a user that has this; whoever gave it has to take it back.
        assert "must be superuser" in str((await scene.engine.disable([user]))[0].error)
        await scene.root.execute(f'ALTER ROLE "{user.name}" NOREPLICATION')
    assert gone(await scene.remove([user]))
    with pytest.raises(CLOSED):
        await opened.execute("IDENTIFY_SYSTEM")
    with pytest.raises(CLOSED):
        await (await logins[0]).execute("IDENTIFY_SYSTEM")
    wire = await logins[1]
    await wire.execute("IDENTIFY_SYSTEM")
    for each in (wire, opened):
        each.terminate()


async def test_standby_that_is_down_is_named_until_it_is_back(pair: Pair) -> None:
    """While it is away the user is contained and not done, and the answer names the standby; once it is back the revocation ends."""
    scene, standby = pair.scene, pair.standby
    user, _ = await scene.create()
    other = (await scene.create())[0]
    standby.stop()
    for _ in range(2):
        said = await scene.remove([user, other])
        for error in said["end_sessions"]:
            assert isinstance(error, UserRemains)
            assert str(error).startswith(f"standby {standby.host}:{standby.port} can't be reached")
            assert error.remedy[-1].startswith(f"/* on {standby.host}:{standby.port} */ SELECT pg_catalog.pg_terminate_backend")
        assert said["disable"] == [None, None]
    standby.start()
    await until_gone(scene, [user, other])


async def test_standby_killed_in_the_middle_is_named(pair: Pair) -> None:
    """One that dies while a batch waits for it to catch up fails the batch at once, by name; after its restart the revocation ends."""
    scene = pair.scene
    user, password = await scene.create()
    wire = await pair.session(user.name, password)
    await pair.there.execute("SELECT pg_wal_replay_pause()")
    await scene.engine.disable([user])
    ending = asyncio.ensure_future(scene.engine.end_sessions([user]))
    if scene.place.limited:
        # It has asked before, and now waits.
        async with asyncio.timeout(LIMIT_S):
            while not await pair.there.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^broker/'"):
                await asyncio.sleep(0.02)
    else:
        with pytest.raises(CLOSED):
            await wire.fetchval("SELECT pg_sleep(60)")
    pair.standby.kill()
    [outcome] = await ending
    assert "can't be reached" in str(outcome.error)
    pair.standby.start()
    await until_gone(scene, [user])


async def test_standby_that_was_restarted_is_asked_again(pair: Pair) -> None:
    """A restart of the standby, which cuts the broker's connection to it, does not count as being away."""
    scene = pair.scene
    first, second = (await scene.create())[0], (await scene.create())[0]
    assert gone(await scene.remove([first]))
    pair.standby.restart()
    assert gone(await scene.remove([second]))


async def test_lagging_standby_keeps_the_revocation_open(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has not replayed the end of the login still lets the user in: it is not done until it has, and until all sessions are over.

    A login that may end sessions by itself ends those that there are at once; a plain one once its membership has been replayed.
    """
    scene = pair.scene
    monkeypatch.setattr(standbys, "_LAG_S", 0.3)
    user, password = await scene.create()
    wire = await pair.session(user.name, password)
    await pair.there.execute("SELECT pg_wal_replay_pause()")
    try:
        await scene.engine.disable([user])
        [ended] = await scene.engine.end_sessions([user])
        assert "has not replayed yet that the user's login is off" in str(ended.error)
        if not scene.place.limited:
            with pytest.raises(CLOSED):
                await wire.fetchval("SELECT 1")
        again = await pair.session(user.name, password)
    finally:
        monkeypatch.setattr(standbys, "_LAG_S", float(LIMIT_S))
        await pair.there.execute("SELECT pg_wal_replay_resume()")
    await until_gone(scene, [user])
    for each in (wire, again):
        with pytest.raises(CLOSED):
            await each.fetchval("SELECT 1")


async def test_lagging_standby_is_waited_for_by_one_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the place in the log for which a batch waited is not reached nobody waits again: each is told at once how far it is behind."""
    scene = pair.scene
    users = [(await scene.create())[0] for _ in range(3)]
    await pair.arrived()
    await pair.there.execute("SELECT pg_wal_replay_pause()")
    try:
        monkeypatch.setattr(standbys, "_LAG_S", 0.3)
        for user in users:
            await scene.engine.disable([user])
            async with asyncio.timeout(LIMIT_S):
                [outcome] = await scene.engine.end_sessions([user])
            assert "has not replayed yet" in str(outcome.error)
            # Whoever waited for a standby now would do so for longer than this test has.
            for limit in ("_LAG_S", "_LIMIT_S", "_PATIENCE_S"):
                monkeypatch.setattr(standbys, limit, 10.0 * LIMIT_S)
    finally:
        await pair.there.execute("SELECT pg_wal_replay_resume()")
    await pair.arrived()
    # It has caught up with all for which somebody waited, so it is waited for again.
    last, _ = await scene.create()
    await pair.arrived()
    await pair.there.execute("SELECT pg_wal_replay_pause()")
    await scene.engine.disable([last])
    begun = await pair.there.fetchval("SELECT clock_timestamp()")
    ending = asyncio.ensure_future(scene.engine.end_sessions([last]))
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^broker/' AND query ~ 'caught_up' AND query_start > $1"
    )
    async with asyncio.timeout(LIMIT_S):
        while not await pair.there.fetchval(asked, begun):
            await asyncio.sleep(0.01)
    await pair.there.execute("SELECT pg_wal_replay_resume()")
    [outcome] = await ending
    assert outcome.error is None
    assert gone(await scene.remove([*users, last]))


async def test_standby_that_does_not_know_the_user_yet_counts_as_lagging(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the user has arrived, or only its time before it was turned on, it will still be let in for a moment: not done."""
    scene = pair.scene
    monkeypatch.setattr(standbys, "_LAG_S", 0.3)
    [(prepared, _)] = await scene.prepare(1)
    await pair.arrived()
    await pair.there.execute("SELECT pg_wal_replay_pause()")
    try:
        unknown, _ = await scene.create()
        users = [prepared, unknown]
        await scene.engine.enable([Extension(user=prepared, lifetime_ms=60_000)])
        await scene.engine.disable(users)
        for outcome in await scene.engine.end_sessions(users):
            assert "has not replayed yet" in str(outcome.error)
    finally:
        monkeypatch.setattr(standbys, "_LAG_S", float(LIMIT_S))
        await pair.there.execute("SELECT pg_wal_replay_resume()")
    assert gone(await scene.remove(users))


async def test_standby_that_is_away_is_left_alone_for_a_while(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it could not be reached it is not asked again at each batch: the next ones are told at once, without a connection."""
    monkeypatch.setattr(standbys, "_FIRST_AWAY_S", 60.0)
    monkeypatch.setattr(standbys, "_LONGEST_AWAY_S", 60.0)
    scene = pair.scene
    users = [(await scene.create())[0] for _ in range(2)]
    await scene.engine.disable(users)
    pair.standby.stop()
    [first] = await scene.engine.end_sessions(users[:1])
    pair.standby.start()
    [second] = await scene.engine.end_sessions(users[1:])
    assert "can't be reached" in str(second.error)
    assert str(second.error) == str(first.error)
    fresh = await scene.another_engine(standbys=f"{pair.standby.host}:{pair.standby.port}")
    assert [outcome.error for outcome in await fresh.end_sessions(users)] == [None, None]


async def test_revocations_do_not_wait_for_a_standby_that_is_away(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch finds a frozen standby out; from then on it is asked behind their backs, and each does its work on the primary at once.

    Their users are contained there, what is owed is said, and once the standby answers again they are gone from both.
    """
    monkeypatch.setattr(standbys, "_LIMIT_S", 0.5)
    scene = pair.scene
    users, wires, asked = [], [], []
    async with Proxy(pair.standby.host, pair.standby.port) as proxy:
        scene.engine = engine = await scene.another_engine(standbys=f"127.0.0.1:{proxy.port}")
        ask = engine._connector.connect_to_standby

        async def counted(*arguments: Any) -> Any:
            asked.append(asyncio.current_task())
            return await ask(*arguments)

        monkeypatch.setattr(engine._connector, "connect_to_standby", counted)
        for _ in range(3):
            user, password = await scene.create()
            users.append(user)
            wires.append(await scene.session(user.name, password))
        proxy.stall()
        for user, wire in zip(users, wires, strict=True):
            await engine.disable([user])
            [outcome] = await engine.end_sessions([user])
            assert f"standby 127.0.0.1:{proxy.port} can't be reached (no answer within 0.5 s)" in str(outcome.error)
            with pytest.raises(CLOSED):
                await wire.fetchval("SELECT 1")
            async with asyncio.timeout(LIMIT_S):
                # It was asked again meanwhile.
                before = len(asked)
                while len(asked) == before:
                    await asyncio.sleep(0.02)
        [probe] = {*asked[1:]}
        assert asked[0] is not probe
        assert await scene.root.fetchval("SELECT count(*) FROM pg_roles WHERE rolcanlogin AND oid = ANY ($1::oid[])", [
            int(user.identity) for user in users
        ]) == 0  # fmt: skip
        monkeypatch.setattr(standbys, "_LIMIT_S", float(LIMIT_S))
        proxy.resume()
        await until_gone(scene, users)


async def test_every_standby_that_is_owed_is_named(pair: Pair) -> None:
    """Where several are away each of them is named, with what could be done there by hand; so is one that is no standby."""
    scene, server, here = pair.scene, pair.scene.place.server, f"{pair.standby.host}:{pair.standby.port}"
    async with Proxy(pair.standby.host, pair.standby.port) as proxy:
        closed = proxy.port
    scene.engine = await scene.another_engine(standbys=[f"127.0.0.1:{closed}", here, f"{server.host}:{server.port}"])
    user, _ = await scene.create()
    pair.standby.stop()
    [error] = (await scene.remove([user]))["end_sessions"]
    assert isinstance(error, UserRemains)
    for place in (f"127.0.0.1:{closed}", here):
        assert f"standby {place} can't be reached" in str(error)
    assert [text.partition(" */")[0] for text in error.remedy] == [f"/* on 127.0.0.1:{closed}", f"/* on {here}"]


async def test_closed_engine_asks_a_standby_no_more(pair: Pair) -> None:
    """Whatever waited for a standby to come back ends with the engine; opened again, the engine asks at the first revocation."""
    scene = pair.scene
    user, _ = await scene.create()
    await scene.engine.disable([user])
    pair.standby.stop()
    [outcome] = await scene.engine.end_sessions([user])
    assert "can't be reached" in str(outcome.error)
    [standby] = scene.engine._standbys._standbys
    asking = standby._return
    await scene.engine.close()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.wait([asking])
    assert asking.cancelled()
    pair.standby.start()
    await scene.engine.open()
    assert gone(await scene.remove([user]))


async def test_primary_among_the_standbys_is_left_out(pair: Pair) -> None:
    """Whoever names all servers of the cluster names the primary too; that asks for nothing twice."""
    scene, server = pair.scene, pair.scene.place.server
    scene.engine = await scene.another_engine(standbys=f"{server.host}:{server.port},{pair.standby.host}:{pair.standby.port}")
    user, password = await scene.create()
    wire = await pair.session(user.name, password)
    assert gone(await scene.remove([user]))
    with pytest.raises(CLOSED):
        await wire.fetchval("SELECT 1")


async def test_sweep_reaches_the_standby(pair: Pair) -> None:
    """Sessions there of a user that was dropped by hand are seen and swept, and the answer names the standby; also one that is away."""
    scene, place = pair.scene, f"{pair.standby.host}:{pair.standby.port}"
    if scene.place.limited:
        await scene.root.execute("GRANT pg_signal_backend TO limited")
    try:
        user, password = await scene.create()
        wire = await pair.session(user.name, password)
        await scene.remove_by_hand(user.name)
        await pair.arrived()
        engine = await scene.another_engine(standbys=place)
        [seen] = await engine.abandoned()
        assert (seen.identity, seen.sessions, seen.place, seen.error) == (user.identity, 1, place, None)
        assert await wire.fetchval("SELECT 1") == 1
        [swept] = await engine.sweep()
        assert (swept.identity, swept.sessions, swept.place, swept.error) == (user.identity, 1, place, None)
        with pytest.raises(CLOSED):
            await wire.fetchval("SELECT 1")
        pair.standby.stop()
        for away in (*await engine.sweep(), *await engine.abandoned()):
            assert (away.place, away.sessions) == (place, 0)
            assert "can't be reached" in str(away.error)
    finally:
        await scene.root.execute("REVOKE pg_signal_backend FROM limited")


async def test_server_of_another_cluster_is_left_alone(scene: Any, postgresql: PostgresServer) -> None:
    """A server of another cluster named as a standby is never touched, since the same OID is somebody else's there."""
    with PostgresServer(postgresql.binaries) as stranger:
        wire: Any = await asyncpg.connect(stranger.superuser_dsn().reveal())
        login, password = scene.place.login, scene.place.password.reveal()
        await wire.execute("CREATE DATABASE app")
        if scene.place.limited:
            await wire.execute(f"CREATE ROLE {login} LOGIN SUPERUSER PASSWORD '{password}'")
        else:
            await wire.execute(f"ALTER ROLE {login} PASSWORD '{password}'")
        scene.engine = await scene.another_engine(standbys=f"{stranger.host}:{stranger.port}")
        user, _ = await scene.create()
        [outcome] = await scene.engine.end_sessions([user])
        assert "belongs to another database cluster, and was left alone" in str(outcome.error)
        assert await wire.fetchval("SELECT 1") == 1
        await wire.close()


async def test_promoted_standby_is_told(scene: Any, postgresql: PostgresServer) -> None:
    """A standby that was promoted, and so goes its own way, is named; it does not count as done there."""
    with Standby(postgresql) as promoted:
        promoted.promote()
        scene.engine = await scene.another_engine(standbys=f"{promoted.host}:{promoted.port}")
        user, _ = await scene.create()
        [outcome] = await scene.engine.end_sessions([user])
        assert "it takes writes itself" in str(outcome.error)


async def test_standby_that_is_busy_is_not_waited_for_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage waits for its turn at a standby only so long, and then says so: the primary must not seem to be what is slow."""
    scene = pair.scene
    user, _ = await scene.create()
    await scene.engine.disable([user])
    [standby] = scene.engine._standbys._standbys
    monkeypatch.setattr(standbys, "_PATIENCE_S", 0.3)
    async with standby._turn:
        [outcome] = await scene.engine.end_sessions([user])
        assert "can't be reached (busy with others for 0.3 s)" in str(outcome.error)
        assert "busy" in str([swept.error for swept in await scene.engine.sweep() if swept.place])
    monkeypatch.setattr(standbys, "_PATIENCE_S", float(LIMIT_S))
    assert gone(await scene.remove([user]))


async def test_frozen_standby_holds_nobody_up_for_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts connections and never answers costs a batch its time limit once; then it counts as away."""
    monkeypatch.setattr(standbys, "_LIMIT_S", 0.5)
    monkeypatch.setattr(standbys, "_LONGEST_AWAY_S", 60.0)
    monkeypatch.setattr(standbys, "_FIRST_AWAY_S", 60.0)
    scene = pair.scene
    async with Proxy(pair.standby.host, pair.standby.port) as proxy:
        scene.engine = await scene.another_engine(standbys=f"127.0.0.1:{proxy.port}")
        first, second = (await scene.create())[0], (await scene.create())[0]
        proxy.stall()
        for user in (first, second):
            [outcome] = await scene.engine.end_sessions([user])
            assert "can't be reached (no answer within 0.5 s)" in str(outcome.error)
        assert proxy.arrivals._value == 1
