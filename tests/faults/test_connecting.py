"""A connection that is given up while it is being made is closed, wherever its making stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from broker.engines.protocol import Origin
from broker.testing.broker import until
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker_postgresql import Engine

OURS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'broker/%'"
WAITS = "SELECT min(pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """With a plain CREATEROLE login."""
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries, extra_config={"fsync": "off"}) as started:
        asyncio.run(Database(started).run("CREATE ROLE plain LOGIN CREATEROLE PASSWORD 'plain'"))
        yield started


@pytest.mark.parametrize(
    "table",
    ["pg_authid", "pg_database", "pg_parameter_acl"],
    ids=["login checked", "database entered", "rights on settings asked"],
)
async def test_connection_that_is_given_up_while_it_is_made_is_closed(server: PostgresServer, table: str) -> None:
    """The server holds it up, the call is given up, and once the server goes on nobody is connected any more."""
    config = {"connection_url": server.url_template(), "username": "plain", "password": "plain"}
    engine = Engine("made", config, Origin(broker="making", boot="boot"))
    holder = await asyncpg.connect(server.superuser_dsn().reveal())
    try:
        await holder.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        opening = asyncio.create_task(engine.open())
        await until(lambda: holder.fetchval(WAITS), every_s=0.005)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await holder.execute("COMMIT")

        async def nobody() -> bool:
            return not await holder.fetch(OURS)

        await until(nobody)
    finally:
        await engine.close()
        await holder.close()
