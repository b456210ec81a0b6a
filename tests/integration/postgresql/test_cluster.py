"""What names a cluster: the same whoever asks and however often, and another one is never taken for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker.testing.postgresql import PostgresServer
from broker.testing.standby import Standby
from broker_postgresql import Engine


async def test_every_login_sees_the_system_identifier(scene: Any) -> None:
    """A plain CREATEROLE login is told as a superuser is, and a second engine hears the same."""
    identifier = await scene.root.fetchval("SELECT system_identifier::text FROM pg_control_system()")
    assert (await scene.engine.health()).cluster == identifier
    assert (await (await scene.another_engine()).open()).cluster == identifier


async def test_a_server_that_keeps_its_identifier_to_itself(scene: Any) -> None:
    """Where the function was taken from everybody, facts stand in for it, the same for each engine."""
    await scene.root.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        first, second = await scene.another_engine(), await scene.another_engine()
        found = (await first.open()).cluster
        assert found == (await second.open()).cluster
        assert found.startswith("database ") if scene.place.limited else found.isdigit()
    finally:
        await scene.root.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


async def test_a_restart_keeps_the_cluster_and_another_server_is_refused(binaries: Path) -> None:
    """The name of a cluster outlives its processes; a next host that is another cluster counts as no server at all."""
    with PostgresServer(binaries) as own, PostgresServer(binaries) as other:
        for server in (own, other):
            wire = await asyncpg.connect(server.superuser_dsn().reveal())
            await wire.execute("CREATE ROLE limited LOGIN CREATEROLE PASSWORD 'limited'")
            await wire.close()
        hosts = f"127.0.0.1:{own.port},127.0.0.1:{other.port}"
        fields = {"connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{hosts}/postgres"}
        engine = Engine("main", {**fields, "username": "limited", "password": "limited"}, Origin(broker="b1", boot="boot1"))
        try:
            cluster = (await engine.open()).cluster
            await asyncio.to_thread(own.restart)
            assert (await engine.health()).cluster == cluster
            await asyncio.to_thread(own.stop)
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable) as raised:
                    await engine.health()
            assert "another database cluster" in str(raised.value)
        finally:
            await engine.close()


async def test_two_promoted_standbys_are_refused_until_one_is_stopped(binaries: Path) -> None:
    """Both have the same timeline and not the same users: neither is worked with, and later only the one that was.

    When that one is away the other does not take its place, though its timeline is no lower.
    """
    with PostgresServer(binaries) as primary, Standby(primary) as one, Standby(primary) as other:
        servers = (primary, one, other)
        hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
        fields = {
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{hosts}/postgres",
            "username": primary.superuser,
            "password": primary.superuser_password.reveal(),
        }
        engine = Engine("main", fields, Origin(broker="b1", boot="boot1"))
        try:
            assert (await engine.open()).timeline == "1"
            await asyncio.to_thread(primary.stop)
            for standby in (one, other):
                await asyncio.to_thread(standby.promote)
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable, match="which of them has the users can't be told"):
                    await engine.health()
            await asyncio.to_thread(one.stop)
            found = await engine.health()
            assert (found.timeline, found.addresses) == ("2", (f"{other.host}:{other.port}",))
            await asyncio.to_thread(one.start)
            for _ in range(2):
                engine._connector.doubt()
                engine._lanes.retire()
                found = await engine.health()
                assert (found.timeline, found.addresses) == ("2", (f"{other.host}:{other.port}",))
            again = Engine(
                "main", fields, Origin(broker="b1", boot="boot2", timeline=found.timeline, addresses=found.addresses)
            )
            assert (await again.open()).addresses == found.addresses
            await again.close()
            [concern] = found.concerns
            assert concern.startswith(f"{one.host}:{one.port} takes writes as well, on the same timeline 2")
            await asyncio.to_thread(other.stop)
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable) as raised:
                    await engine.health()
            assert f"{one.host}:{one.port}: takes writes on timeline 2 as {other.host}:{other.port} did" in str(raised.value)
        finally:
            await engine.close()
