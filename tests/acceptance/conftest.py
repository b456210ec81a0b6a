"""Brokers as a user has them: processes, a real PostgreSQL behind them, and the command `broker` beside them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from broker.testing.broker import BrokerProcess
from broker.testing.database import Database
from broker.testing.leasing import write_connection, write_role
from broker.testing.postgresql import PostgresServer

LIMITED = {"username": "limited_broker", "password": "a-password"}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A running broker that is the test's own, without a database."""
    with BrokerProcess(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, postgresql_18: PostgresServer) -> Iterator[BrokerProcess]:
    """A running broker that the tests of a module share, with the connection `pg` and the role `app`."""
    with BrokerProcess(tmp_path_factory.mktemp("shared")) as started:
        asyncio.run(_set_up(started, postgresql_18))
        yield started


async def _set_up(broker: BrokerProcess, server: PostgresServer) -> None:
    await write_connection(broker, server)
    await write_role(broker)


@pytest.fixture(params=["superuser", "createrole"])
def login(request: pytest.FixtureRequest, postgresql: PostgresServer) -> dict[str, str]:
    """Fields of a connection: the broker's login at a server of each version, its superuser or one with CREATEROLE and nothing else."""
    if request.param == "superuser":
        return {}
    asyncio.run(_make_login(Database(postgresql)))
    return dict(LIMITED)


async def _make_login(database: Database) -> None:
    if not await database.has(LIMITED["username"]):
        await database.run(f"CREATE ROLE {LIMITED['username']} LOGIN CREATEROLE PASSWORD '{LIMITED['password']}'")


@pytest.fixture(scope="session")
def database(postgresql_18: PostgresServer) -> Database:
    """The shared server, seen by its superuser."""
    return Database(postgresql_18)


@pytest.fixture
def victim() -> Sequence[str]:
    """The command of a broker that dies at a step named after the configuration."""
    return (sys.executable, str(Path(__file__).parents[1] / "faults" / "victim.py"))
