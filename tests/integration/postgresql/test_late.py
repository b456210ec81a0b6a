"""Statements of calls that were given up, and of dead processes: they are ended, and hold up nobody but the proof of absence."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from broker.clock import stopwatch_s
from broker.errors import UserRemains
from broker.model import Terms
from broker.secret import Secret
from broker_postgresql import late

LIMIT_S = 60
KEY = 4_711
BLOCKED = Terms(creation=("CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'", f"SELECT pg_advisory_xact_lock({KEY})"))
WAITING = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY} AND NOT granted"
CLOSED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told to end is given up on sooner."""
    monkeypatch.setattr(late, "_LIMIT_S", 0.3)


async def until(truth: Callable[[], Awaitable[Any]]) -> Any:
    """Waits until `truth` says something, and answers that."""
    deadline_s = stopwatch_s() + LIMIT_S
    while not (said := await truth()):
        assert stopwatch_s() < deadline_s
        await asyncio.sleep(0.01)
    return said


@asynccontextmanager
async def frozen_statement(scene: Any, engine: Any = None) -> AsyncIterator[tuple[Any, int]]:
    """A creation that was given up while its backend hangs: its user, and the process id. It thaws in the end."""
    await scene.root.execute(f"SELECT pg_advisory_lock({KEY})")
    order = await scene.order(BLOCKED)
    calling = asyncio.create_task((engine or scene.engine).create(order))
    pid = await until(lambda: scene.root.fetchval(WAITING))
    os.kill(pid, signal.SIGSTOP)
    try:
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        yield order.user, pid
    finally:
        os.kill(pid, signal.SIGCONT)
        await scene.root.execute(f"SELECT pg_advisory_unlock({KEY})")
        await until(lambda: _ended(scene, pid))


async def _ended(scene: Any, pid: int) -> bool:
    return not await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)


async def stages_but_the_last(scene: Any, users: list[Any]) -> list[Any]:
    """Everything of a revocation but the proof; what was wrong."""
    engine = scene.engine
    verbs = (engine.disable, engine.end_sessions, engine.release, engine.drop)
    return [outcome.error for verb in verbs for outcome in await verb(users) if outcome.error]


async def proved(scene: Any, users: list[Any]) -> bool:
    """Whether the users' absence is proved by now."""
    try:
        return not any(outcome.error for outcome in await scene.engine.prove_absent(users))
    except UserRemains:
        return False


async def test_statement_that_hangs_holds_up_no_login(scene: Any) -> None:
    """A late statement that does not end delays the proof alone, and is named: the others lose login, sessions and user at once."""
    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    async with frozen_statement(scene) as (given_up, pid):
        assert not await stages_but_the_last(scene, [user])
        assert not await scene.exists(user.name)
        with pytest.raises(CLOSED):
            await wire.execute("SELECT 1")
        with pytest.raises(UserRemains, match=f"process {pid} of") as told:
            await scene.engine.prove_absent([user])
        assert told.value.remedy == ()
    await until(lambda: proved(scene, [user, given_up]))
    assert not await scene.exists(given_up.name)


async def test_login_that_was_turned_on_late_is_turned_off_again(scene: Any) -> None:
    """A login that a late statement turns on after it was turned off is off again once that statement is gone, with the next sweep."""
    user, password = await scene.create()
    other, word = await scene.create()
    async with frozen_statement(scene):
        [outcome] = await scene.engine.disable([user])
        assert outcome.error is None
        # What the late statement might do in its last moment.
        await scene.root.execute(f'ALTER ROLE "{user.name}" LOGIN')
        await scene.engine.sweep()
    assert await scene.log_in(user.name, password) is not None
    await scene.engine.sweep()
    assert await scene.log_in(user.name, password) is None
    assert await scene.log_in(other.name, word) is not None


async def test_statement_of_a_connection_that_was_changed_is_not_forgotten(scene: Any) -> None:
    """What hangs when the connection gets another login is seen by its next engine: the proof waits for it, or says what ends it."""
    server, user = scene.place.server, (await scene.create())[0]
    former = {"username": server.superuser, "password": server.superuser_password.reveal()}
    if not scene.place.limited:
        former = {"username": "limited", "password": "limited"}
    engine = await scene.another_engine(**former)
    async with frozen_statement(scene, engine) as (given_up, pid):
        await engine.close()
        scene.engine = await scene.another_engine()
        assert not await stages_but_the_last(scene, [user])
        with pytest.raises(UserRemains, match=f'process {pid} of "{former["username"]}"') as told:
            await scene.engine.prove_absent([user])
        assert bool(told.value.remedy) is scene.place.limited
        for remedy in told.value.remedy:
            await scene.root.execute(remedy)
    assert await proved(scene, [user, given_up])
    assert not await scene.exists(given_up.name)


@asynccontextmanager
async def former_process(scene: Any, login: str) -> AsyncIterator[Any]:
    """A statement under way of an earlier process of this broker, whose connection had another login."""
    await scene.root.execute(f"SELECT pg_advisory_lock({KEY})")
    dsn = scene.place.server.dsn(login, Secret("former"), "app").reveal()
    name = f"broker/{scene.origin.broker}/earlier"
    wire: Any = await asyncpg.connect(dsn, server_settings={"application_name": name})
    running = asyncio.create_task(wire.execute(f"SELECT pg_advisory_lock({KEY})"))
    try:
        await until(lambda: scene.root.fetchval(WAITING))
        yield running
    finally:
        await scene.root.execute(f"SELECT pg_advisory_unlock({KEY})")
        await asyncio.gather(running, return_exceptions=True)
        wire.terminate()


@pytest.fixture
async def former(scene: Any) -> AsyncIterator[str]:
    """A login that a connection of the broker had before."""
    name = f"former_{scene.origin.boot}"
    await scene.root.execute(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'former'")
    yield name
    await until(lambda: _without_sessions(scene, name))
    await scene.root.execute(f"DROP ROLE {name}; REVOKE pg_signal_backend FROM limited")


async def _cut_off(running: asyncio.Task[Any]) -> bool:
    return running.done() and isinstance(running.exception(), CLOSED)


async def _without_sessions(scene: Any, name: str) -> bool:
    return not await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = $1::text", name)


async def test_statements_of_a_former_login_are_ended(scene: Any, former: str) -> None:
    """What an earlier process began under another login is ended before absence counts, where our login may end it."""
    await scene.root.execute("GRANT pg_signal_backend TO limited")
    user, _ = await scene.create()
    engine = scene.engine = await scene.another_engine()
    async with former_process(scene, former) as running:
        assert not await stages_but_the_last(scene, [user])
        assert [outcome.error for outcome in await engine.prove_absent([user])] == [None]
        assert await until(lambda: _cut_off(running))


async def test_statements_that_are_not_ours_to_end_are_told(scene: Any, former: str) -> None:
    """Where our login may not end them, the others' logins, sessions and users go all the same; the proof says with which statement."""
    if not scene.place.limited:
        await scene.root.execute(f"ALTER ROLE {former} SUPERUSER")
    user, _ = await scene.create()
    scene.engine = await scene.another_engine()
    async with former_process(scene, former) as running:
        assert not await stages_but_the_last(scene, [user])
        assert not await scene.exists(user.name)
        if scene.place.limited:
            with pytest.raises(UserRemains, match=f'of "{former}"') as told:
                await scene.engine.prove_absent([user])
            [remedy] = told.value.remedy
            assert not running.done()
            assert await scene.root.fetchval(remedy) is True
        await until(lambda: proved(scene, [user]))
        assert await until(lambda: _cut_off(running))


async def test_idle_session_of_a_former_login_holds_up_nobody(scene: Any, former: str) -> None:
    """One that our login may not end, of a process that is dead, as after the loss of its host: nothing comes over it any more."""
    if not scene.place.limited:
        await scene.root.execute(f"ALTER ROLE {former} SUPERUSER")
    user, _ = await scene.create()
    scene.engine = await scene.another_engine()
    wire: Any = await asyncpg.connect(
        scene.place.server.dsn(former, Secret("former"), "app").reveal(),
        server_settings={"application_name": f"broker/{scene.origin.broker}/earlier"},
    )
    assert not await stages_but_the_last(scene, [user])
    assert [outcome.error for outcome in await scene.engine.prove_absent([user])] == [None]
    if scene.place.limited:
        assert await wire.fetchval("SELECT 1") == 1
    wire.terminate()


async def test_whoever_calls_its_session_like_ours_holds_up_nobody(scene: Any) -> None:
    """A session of a user that can make no roles sent nothing of ours, whatever it says it is: it goes on, and nobody waits for it."""
    user, _ = await scene.create()
    other, password = await scene.create()
    wire = await scene.session(other.name, password)
    await wire.execute(f"SET application_name = 'broker/{scene.origin.broker}/earlier'")
    scene.engine = await scene.another_engine()
    assert not await stages_but_the_last(scene, [user])
    assert [outcome.error for outcome in await scene.engine.prove_absent([user])] == [None]
    assert await wire.fetchval("SELECT 1") == 1
