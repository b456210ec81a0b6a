"""The attack of the hidden login: past the login check before the login is turned off, asleep until after the user is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import structlog

from broker.clock import stopwatch_s
from broker.errors import DatabaseUnavailable, UserRemains
from broker.secret import Secret
from broker_postgresql import hidden

LIMIT_S = 60
IN_PROGRESS = hidden.QUERIES["logins_in_progress"]
LONG_S = 300
"""Longer than any of these tests takes: a login that hides for so long comes to light only if nobody ends it."""
BYSTANDERS_S = 6
"""How long logins hide that are waited for: long enough that all of a test's hide at the same time on a busy machine, too."""


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins count as ordinary for a shorter time, so that nothing waits long."""
    monkeypatch.setattr(hidden, "PATIENCE_S", 0.2)


async def until(truth: Any) -> None:
    """Waits until `truth` says yes."""
    deadline = stopwatch_s() + LIMIT_S
    while not await truth():
        assert stopwatch_s() < deadline
        await asyncio.sleep(0.01)


def attack(scene: Any, name: str, password: Secret, delay_s: int, role: str = "readers") -> asyncio.Task[Any]:
    """A login that sleeps after its check and then acts as the group."""
    dsn = scene.place.server.dsn(name, password, "app").reveal()
    settings = {"post_auth_delay": str(delay_s), "role": role} if role else {"post_auth_delay": str(delay_s)}
    # Not by server_settings: those the server reads in the same place, but `options` is what anybody has at hand.
    options = "%20".join(f"-c%20{key}%3D{value}" for key, value in settings.items())
    return asyncio.ensure_future(asyncpg.connect(f"{dsn}?options={options}", timeout=LIMIT_S * 2))


@asynccontextmanager
async def hiding(scene: Any, *logins: asyncio.Task[Any]) -> AsyncIterator[list[int]]:
    """Waits until these logins, and no others, sleep on the server; yields their process ids. Whatever is left of them is ended."""
    try:
        await until(lambda: _count(scene, len(logins)))
        yield [row["pid"] for row in await scene.root.fetch(IN_PROGRESS)]
    finally:
        for row in await scene.root.fetch(IN_PROGRESS):
            await scene.root.execute(f"SELECT pg_terminate_backend({row['pid']})")
        for login in logins:
            login.cancel()
        for ended in await asyncio.gather(*logins, return_exceptions=True):
            if isinstance(ended, asyncpg.Connection):
                ended.terminate()


async def _count(scene: Any, count: int) -> bool:
    found = await scene.root.fetch(IN_PROGRESS)
    await asyncio.sleep(0.05)
    return len(found) == count == len(await scene.root.fetch(IN_PROGRESS))


def gone(said: dict[str, list[Exception | None]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def test_hidden_login_reads_before_and_is_refused_after(scene: Any) -> None:
    """Its user reads by the group's right; a login of it that was let in before the revocation never gets to reading."""
    user, password = await scene.create()
    before = await attack(scene, user.name, password, 1)
    assert await before.fetchval("SELECT name FROM goods") == "lamp"
    await before.close()
    login = attack(scene, user.name, password, LONG_S)
    async with hiding(scene, login) as [pid]:
        assert not await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usesysid = $1", int(user.identity))
        assert gone(await scene.remove([user]))
        assert pid not in [row["pid"] for row in await scene.root.fetch(IN_PROGRESS)]
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await (await login).fetchval("SELECT name FROM goods")


async def test_hidden_login_that_wakes_meanwhile_is_ended(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that comes to light while the broker waits to see whose it is counts as a session, and is ended."""
    monkeypatch.setattr(hidden, "PATIENCE_S", float(LONG_S))
    user, password = await scene.create()
    login = attack(scene, user.name, password, 4)
    async with hiding(scene, login):
        assert gone(await scene.remove([user]))
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await (await login).fetchval("SELECT name FROM goods")


async def test_logins_of_others_in_progress_go_on(scene: Any) -> None:
    """Of the logins in progress only the revoked users' are ended: those of strangers, superusers and our own wake and work."""
    user, password = await scene.create()
    other, word = await scene.create()
    server = scene.place.server
    login = attack(scene, user.name, password, LONG_S)
    others = [
        attack(scene, other.name, word, BYSTANDERS_S),
        attack(scene, scene.place.login, scene.place.password, BYSTANDERS_S, role=""),
        attack(scene, server.superuser, server.superuser_password, BYSTANDERS_S, role=""),
    ]
    async with hiding(scene, login, *others):
        assert gone(await scene.remove([user]))
        for wire in await asyncio.gather(*others):
            assert await wire.fetchval("SELECT 1") == 1


async def test_group_that_logs_in_is_told_from_its_member(scene: Any) -> None:
    """A group of the user which logs in itself keeps its own login in progress, though the user might end its sessions; and its grant."""
    await scene.root.execute("ALTER ROLE readers LOGIN PASSWORD 'readers'")
    try:
        user, password = await scene.create()
        login = attack(scene, user.name, password, LONG_S)
        groups = attack(scene, "readers", Secret("readers"), BYSTANDERS_S, role="")
        async with hiding(scene, login, groups):
            [ended] = await scene.engine.end_sessions([user])
            assert ended.error is None
            assert await scene.root.fetchval("SELECT pg_has_role($1::oid, 'readers', 'MEMBER')", int(user.identity))
            assert await (await groups).fetchval("SELECT name FROM goods") == "lamp"
    finally:
        await scene.root.execute("ALTER ROLE readers NOLOGIN")


async def test_right_to_end_others_sessions_is_set_aside(scene: Any) -> None:
    """A user whose group may end others' sessions ends its own hidden login alone, when the broker asks as that user whose they are."""
    await scene.root.execute("GRANT pg_signal_backend TO readers")
    try:
        user, password = await scene.create()
        other, word = await scene.create()
        login = attack(scene, user.name, password, LONG_S)
        theirs = attack(scene, other.name, word, BYSTANDERS_S)
        async with hiding(scene, login, theirs):
            assert gone(await scene.remove([user]))
            assert await (await theirs).fetchval("SELECT name FROM goods") == "lamp"
    finally:
        await scene.root.execute("REVOKE pg_signal_backend FROM readers")


async def test_user_made_a_superuser_is_told_from_others(scene: Any) -> None:
    """A user that somebody made a superuser is asked as less than that, or once the statements told were run; others' logins go on."""
    user, password = await scene.create()
    other, word = await scene.create()
    await scene.root.execute(f'ALTER ROLE "{user.name}" SUPERUSER')
    login = attack(scene, user.name, password, LONG_S)
    theirs = attack(scene, other.name, word, BYSTANDERS_S)
    async with hiding(scene, login, theirs):
        [ended] = await scene.engine.end_sessions([user])
        statements = [f'ALTER ROLE "{user.name}" NOSUPERUSER']
        if scene.place.limited:
            assert isinstance(ended.error, UserRemains)
            assert statements[0] in ended.error.remedy
            statements = [*ended.error.remedy]
        else:
            assert ended.error is None
        assert await (await theirs).fetchval("SELECT name FROM goods") == "lamp"
        for statement in statements:
            await scene.root.execute(statement)
        assert gone(await scene.remove([user]))


async def test_every_hidden_login_of_a_batch_is_ended(scene: Any) -> None:
    """Several users with several hidden logins each lose them all in one call, the bystander nothing; the log says whose they were."""
    made = [await scene.create() for _ in range(3)]
    logins = [attack(scene, user.name, word, LONG_S) for user, word in made[:2] for _ in range(2)]
    async with hiding(scene, *logins):
        with structlog.testing.capture_logs() as logged:
            assert gone(await scene.remove([user for user, _ in made]))
        assert not await scene.root.fetch(IN_PROGRESS)
    [line] = logged
    assert (line["place"], line["identities"], line["logins"]) == (
        "connection test",
        sorted(user.identity for user, _ in made[:2]),
        4,
    )


async def test_login_that_hides_before_the_drop_is_ended(scene: Any) -> None:
    """One that comes to light after the sessions were ended is found before its user is dropped, while it can be told whose it is."""
    user, password = await scene.create()
    login = attack(scene, user.name, password, LONG_S)
    async with hiding(scene, login):
        [dropped] = await scene.engine.drop([user])
        assert dropped.error is None
        assert not await scene.root.fetch(IN_PROGRESS)


async def test_server_that_dies_meanwhile_is_asked_again(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server killed while the broker waits to see whose a login is makes the stage fail; after the restart it is done as ever."""
    monkeypatch.setattr(hidden, "PATIENCE_S", float(LIMIT_S))
    server = scene.place.server
    user, password = await scene.create()
    login = attack(scene, user.name, password, LONG_S)
    await until(lambda: _count(scene, 1))
    await scene.engine.disable([user])
    ending = asyncio.ensure_future(scene.engine.end_sessions([user]))
    await until(lambda: _waits(scene))
    await asyncio.to_thread(server.kill)
    with pytest.raises(DatabaseUnavailable):
        await ending
    await asyncio.to_thread(server.start)
    assert isinstance((await asyncio.gather(login, return_exceptions=True))[0], Exception)
    monkeypatch.setattr(hidden, "PATIENCE_S", 0.2)
    assert gone(await scene.remove([user]))


async def _waits(scene: Any) -> bool:
    return bool(scene.engine._hidden._since_s)


async def test_prepared_transaction_is_no_login(scene: Any) -> None:
    """A prepared transaction that holds a database's lock belongs to no process, and holds up nobody."""
    await scene.root.execute("BEGIN; COMMENT ON DATABASE other IS 'x'; PREPARE TRANSACTION 'comment'")
    try:
        user, _ = await scene.create()
        assert gone(await scene.remove([user]))
    finally:
        await scene.root.execute("ROLLBACK PREPARED 'comment'")


async def test_who_may_not_ask_is_told_so(scene: Any) -> None:
    """Where users may not call what ends sessions, a login in progress can't be told apart; once the statement told was run, it can."""
    user, password = await scene.create()
    login = attack(scene, user.name, password, LONG_S)
    function = "FUNCTION pg_terminate_backend(int, bigint)"
    await scene.root.execute(f"REVOKE EXECUTE ON {function} FROM PUBLIC; GRANT EXECUTE ON {function} TO limited")
    try:
        async with hiding(scene, login) as [pid]:
            [ended] = await scene.engine.end_sessions([user])
            assert isinstance(ended.error, UserRemains)
            assert "may be the user's" in str(ended.error)
            [remedy] = ended.error.remedy
            await scene.root.execute(remedy)
            assert gone(await scene.remove([user]))
            assert pid not in [row["pid"] for row in await scene.root.fetch(IN_PROGRESS)]
    finally:
        await scene.root.execute(f"GRANT EXECUTE ON {function} TO PUBLIC; REVOKE EXECUTE ON {function} FROM limited")


@asynccontextmanager
async def gang(scene: Any, attributes: str) -> AsyncIterator[tuple[str, str]]:
    """A group that logs in itself, and an administrator of it, with a login of its own or none left."""
    group, admin = f"gang_{scene.origin.boot}", f"admin_{scene.origin.boot}"
    await scene.root.execute(
        f"CREATE ROLE {group} LOGIN PASSWORD 'gang'; GRANT CONNECT ON DATABASE app TO {group};"
        f"CREATE ROLE {admin} {attributes}; GRANT {group} TO {admin} WITH ADMIN OPTION"
    )
    try:
        yield group, admin
    finally:
        await scene.root.execute(f"DROP OWNED BY {group}; DROP ROLE {group}; DROP ROLE {admin}")


@pytest.mark.parametrize("attributes", ["LOGIN", "NOLOGIN"])
async def test_membership_that_another_granted_is_told(scene: Any, attributes: str) -> None:
    """A membership of which our login can't become the grantor: the very statement told takes it back, and the login is ended."""
    user, password = await scene.create()
    async with gang(scene, attributes) as (group, admin):
        await scene.root.execute(f'SET ROLE {admin}; GRANT {group} TO "{user.name}"; RESET ROLE')
        login = attack(scene, user.name, password, LONG_S)
        theirs = attack(scene, group, Secret("gang"), LONG_S, role="")
        async with hiding(scene, login, theirs):
            [ended] = await scene.engine.end_sessions([user])
            if scene.place.limited and scene.place.new:
                assert isinstance(ended.error, UserRemains)
                assert ended.error.remedy == (f'REVOKE {group} FROM "{user.name}" GRANTED BY {admin} CASCADE',)
                assert len(await scene.root.fetch(IN_PROGRESS)) == 2
                await scene.root.execute(ended.error.remedy[0])
            else:
                assert ended.error is None
            assert gone(await scene.remove([user]))
            assert len(await scene.root.fetch(IN_PROGRESS)) == 1


async def test_membership_in_a_superuser_is_told(scene: Any) -> None:
    """A membership that only a superuser takes back holds its user up, until the very statement told was run."""
    user, password = await scene.create()
    chief = f"chief_{scene.origin.boot}"
    await scene.root.execute(f'CREATE ROLE {chief} SUPERUSER LOGIN; GRANT {chief} TO "{user.name}"')
    try:
        login = attack(scene, user.name, password, LONG_S)
        async with hiding(scene, login):
            [ended] = await scene.engine.end_sessions([user])
            # A superuser's login sets the membership aside and ends the login, yet drops nobody who could have made others.
            held = ended.error if scene.place.limited else (await scene.remove([user]))["drop"][0]
            assert isinstance(held, UserRemains)
            assert bool(await scene.root.fetch(IN_PROGRESS)) is scene.place.limited
            [remedy] = held.remedy
            await scene.root.execute(remedy)
            assert gone(await scene.remove([user]))
            assert not await scene.root.fetch(IN_PROGRESS)
    finally:
        await scene.root.execute(f"DROP ROLE {chief}")
