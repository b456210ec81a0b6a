"""What a connection lacks is told before any lease depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from broker.testing.postgresql import PostgresServer
from broker.testing.standby import Standby

LIMIT_S = 60
STANDBYS = "end sessions on every standby"
STREAMING = "SELECT CASE WHEN count(*) = count(replay_lsn) THEN count(*) END FROM pg_stat_replication"
"""How many standbys there are, once whatever made their copies has gone."""


@pytest.fixture(scope="module")
def standby(prepared_server: PostgresServer) -> Iterator[Standby]:
    """A hot standby of the server."""
    with Standby(prepared_server) as server:
        yield server


async def until(scene: Any, query: str, wanted: int) -> None:
    """Waits until a query of the superuser's answers that."""
    async with asyncio.timeout(LIMIT_S):
        while await scene.root.fetchval(query) != wanted:
            await asyncio.sleep(0.02)


async def reasons(engine: Any) -> list[str]:
    """Why sessions on standbys might go on."""
    return [lack.reason for lack in await engine.preflight([]) if lack.need == STANDBYS]


@asynccontextmanager
async def fetching(scene: Any, what: str) -> AsyncIterator[None]:
    """A connection as one that fetches the log or changes has it, as far as the server shows it, and replays nothing."""
    server = scene.place.server
    dsn = server.dsn(server.superuser, server.superuser_password, "app").reveal()
    wire: Any = await asyncpg.connect(dsn, server_settings={"replication": what, "application_name": "copier"})
    try:
        yield
    finally:
        await wire.close()
        await until(scene, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'copier'", 0)


async def test_standby_that_is_not_named_is_missing(scene: Any, standby: Standby) -> None:
    """It is counted with either login, whatever else the connection names; once it is named, nothing is missing."""
    await until(scene, STREAMING, 1)
    primary = f"{scene.place.server.host}:{scene.place.server.port}"
    here = f"{standby.host}:{standby.port}"
    [reason] = await reasons(scene.engine)
    who = "walreceiver" if scene.place.limited else f"walreceiver at {scene.place.server.host}"
    assert reason.startswith(f"1 fetch the server's log ({who})")
    assert "names none in standbys" in reason
    assert ("GRANT pg_read_all_stats TO" in reason) is scene.place.limited
    [reason] = await reasons(await scene.another_engine(standbys=primary))
    assert "names none in standbys" in reason
    for named in (here, f"{primary},{here}"):
        assert await reasons(await scene.another_engine(standbys=named)) == []


async def test_standby_beside_a_named_one_is_missing(scene: Any, standby: Standby, prepared_server: PostgresServer) -> None:
    """One name is one standby: of two behind it, one is missing, and what is named is told."""
    here = f"{standby.host}:{standby.port}"
    with Standby(prepared_server):
        await until(scene, STREAMING, 2)
        [reason] = await reasons(await scene.another_engine(standbys=here))
        assert reason.startswith("2 fetch the server's log (walreceiver")
        assert f"names {here} in standbys" in reason
    await until(scene, STREAMING, 1)


async def test_what_only_copies_the_log_is_no_standby(scene: Any, standby: Standby) -> None:
    """A base backup or an archiver replays nothing; a login that may not see this counts it, and the very grant told changes that."""
    await until(scene, STREAMING, 1)
    engine = await scene.another_engine(standbys=f"{standby.host}:{standby.port}")
    async with fetching(scene, "true"):
        if not scene.place.limited:
            assert await reasons(engine) == []
            return
        [reason] = await reasons(engine)
        assert "copier" in reason
        grant = reason[reason.index("GRANT") : reason.index(" they don't")]
        await scene.root.execute(grant)
        try:
            assert await reasons(engine) == []
        finally:
            await scene.root.execute("REVOKE pg_read_all_stats FROM limited")


async def test_subscription_is_no_standby(scene: Any, standby: Standby) -> None:
    """Whoever fetches changes of one database for itself has its own users; any login sees the difference."""
    await until(scene, STREAMING, 1)
    engine = await scene.another_engine(standbys=f"{standby.host}:{standby.port}")
    async with fetching(scene, "database"):
        assert await reasons(engine) == []
