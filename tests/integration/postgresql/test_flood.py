"""A user that takes every connection of the server does not keep the broker from ending it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.clock import stopwatch_s
from broker.engines.protocol import NewUser, Origin, User
from broker.model import Json, LeaseNumber, Terms
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer
from broker_postgresql import Engine, lanes

AGE_S = 3_600


@pytest.fixture(scope="module")
def small(binaries: Any, set_up: Callable[[PostgresServer], None]) -> Iterator[PostgresServer]:
    """A server with few connections, three of them for superusers alone, and a plain login."""
    settings = {"fsync": "off", "max_connections": "16", "shared_preload_libraries": "pg_stat_statements"}
    with PostgresServer(binaries, extra_config=settings) as server:
        set_up(server)
        yield server


@pytest.fixture
async def engine(small: PostgresServer) -> AsyncIterator[Engine]:
    """An open engine with the plain login, whose connections are replaced after a while."""
    fields: dict[str, Json] = {"connection_url": small.url_template("app"), "username": "limited", "password": "limited"}
    fields |= {"scram_iterations": 16, "max_connection_lifetime": "10m"}
    engine = Engine("small", fields, Origin(broker="b1", boot="boot1"))
    await engine.open()
    yield engine
    await engine.close()


async def create(engine: Engine, number: int) -> tuple[User, Secret]:
    """A user and its password."""
    name, terms = engine.user_name("test", "role"), Terms(options={"grant_roles": ["readers"]})
    user = User(number=LeaseNumber(number), name=name, identity="", marker=f"broker:v1:b1:{number}:abcdefgh", terms=terms)
    password = await engine.new_password()
    identity = await engine.create(NewUser(user=user, password=password, lifetime_ms=60_000))
    return replace(user, identity=identity), password.text


async def remove(engine: Engine, user: User) -> None:
    """All stages of a revocation."""
    for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
        [outcome] = await verb([user])
        assert outcome.error is None, verb.__name__


async def fill(server: PostgresServer, user: User, password: Secret) -> list[Any]:
    """Every connection that there is for others than superusers, taken by the user."""
    taken = []
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            taken.append(await asyncpg.connect(server.dsn(user.name, password, "app").reveal()))
    return taken


async def test_user_that_takes_every_connection_is_ended(
    engine: Engine, small: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections of a plain login that are due are kept while no other can be had, and replaced afterwards."""
    former, _ = await create(engine, 1)
    await remove(engine, former)
    user, password = await create(engine, 2)
    taken = await fill(small, user, password)
    kept = await pids(small)
    # Stands for a user that is always quicker to take what becomes free.
    await limit(small, 0)
    monkeypatch.setattr(lanes, "stopwatch_s", lambda: stopwatch_s() + AGE_S)
    await remove(engine, user)
    for wire in taken:
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await wire.fetchval("SELECT 1")
    await limit(small, -1)
    later, _ = await create(engine, 3)
    await remove(engine, later)
    assert kept
    assert not kept & await pids(small)


async def limit(server: PostgresServer, connections: int) -> None:
    """How many connections the broker's login may have; those that it has stay."""
    wire = await asyncpg.connect(server.superuser_dsn("app").reveal())
    await wire.execute(f"ALTER ROLE limited CONNECTION LIMIT {connections}")
    await wire.close()


async def pids(server: PostgresServer) -> set[int]:
    """The server's processes of the broker's login."""
    wire = await asyncpg.connect(server.superuser_dsn("app").reveal())
    try:
        return {row[0] for row in await wire.fetch("SELECT pid FROM pg_stat_activity WHERE usename = 'limited'")}
    finally:
        await wire.close()
