"""The launcher of hot standbys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.testing.postgresql import PostgresServer
from broker.testing.standby import Standby


async def run(server: PostgresServer, query: str) -> Any:
    """What the superuser is answered."""
    wire = await asyncpg.connect(server.superuser_dsn().reveal())
    try:
        return await wire.fetchval(query)
    finally:
        await wire.close()


async def until(server: PostgresServer, query: str) -> None:
    """Waits until the server answers yes."""
    async with asyncio.timeout(60):
        while not await run(server, query):
            await asyncio.sleep(0.02)


async def test_standby_follows_and_takes_over(binaries: Path) -> None:
    """It shows what its primary commits, takes no writes, catches up after a stop, and takes writes once it is promoted."""
    seen = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = '{}')"
    async with PostgresServer(binaries) as primary, Standby(primary) as standby:
        assert await run(standby, "SELECT pg_is_in_recovery()")
        await run(primary, "CREATE ROLE one")
        await until(standby, seen.format("one"))
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await run(standby, "CREATE ROLE two")
        standby.stop()
        await run(primary, "CREATE ROLE two")
        standby.start()
        await until(standby, seen.format("two"))
        primary.kill()
        standby.promote()
        await run(standby, "CREATE ROLE three")
        assert not await run(standby, "SELECT pg_is_in_recovery()")
        directory = standby.directory
    assert not directory.exists()
