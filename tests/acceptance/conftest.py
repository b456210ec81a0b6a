"""Brokers as a user has them: processes, a real PostgreSQL behind them, and the command `broker` beside them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from broker.testing.broker import CREATE_USER, BrokerProcess, connection_to
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A running broker that is the test's own, without a database."""
    with BrokerProcess(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, postgresql_18: PostgresServer) -> Iterator[BrokerProcess]:
    """A running broker that the tests of a module share, with the connection `pg` and the role `app`."""
    with BrokerProcess(tmp_path_factory.mktemp("shared")) as started:
        asyncio.run(set_up(started, postgresql_18))
        yield started


async def set_up(broker: BrokerProcess, server: PostgresServer) -> None:
    """Makes the connection and the role."""
    answers = [
        await broker.request("PUT", "database/config/pg", connection_to(server)),
        await broker.request(
            "PUT",
            "database/roles/app",
            {"db_name": "pg", "creation_statements": CREATE_USER, "default_ttl": "1h", "rehearse": False},
        ),
    ]
    assert [answer.status for answer in answers] == [204, 204], answers


@pytest.fixture(scope="session")
def database(postgresql_18: PostgresServer) -> Database:
    """The shared server, seen by its superuser."""
    return Database(postgresql_18)


@pytest.fixture
def victim() -> Sequence[str]:
    """The command of a broker that dies at a step named after the configuration."""
    return (sys.executable, str(Path(__file__).parents[1] / "faults" / "victim.py"))
