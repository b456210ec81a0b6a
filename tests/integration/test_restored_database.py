"""A real PostgreSQL that is set back to an older copy of its files, under a whole broker."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

from broker.testing.broker import CREATE_USER, Broker
from broker.testing.postgresql import PostgresServer, embedded_binaries


async def reconciled(broker: Broker, **order: Any) -> dict[str, int]:
    """What a run finds, by kind."""
    assert (await broker.request("POST", "sys/reconcile", order)).status == 202
    async with asyncio.timeout(60):
        while (found := (await broker.request("GET", "sys/reconcile")).data)["state"] == "running":
            await asyncio.sleep(0.02)
    [report] = found["connections"]
    assert not report["error"]
    return dict(report["found"])


def copy(source: Any, target: Any) -> None:
    """With its owner, as a back-up does it."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


async def test_database_restored_to_an_older_copy_is_put_right(tmp_path: Path) -> None:
    """Users revoked since are revoked again, leases issued since end; what was there at both times stays."""
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries) as server:
        async with Broker(tmp_path / "state") as broker:
            fields = {
                "plugin_name": "postgresql-database-plugin",
                "connection_url": server.superuser_dsn().reveal(),
                "allowed_roles": "*",
                "scram_iterations": 1,
            }
            assert (await broker.request("POST", "database/config/pg", fields)).status in (200, 204)
            role = {"db_name": "pg", "creation_statements": [CREATE_USER]}
            assert (await broker.request("POST", "database/roles/app", role)).status in (200, 204)
            kept, revoked = [(await broker.request("GET", "database/creds/app")).body for _ in range(2)]
            server.stop()
            copy(server.directory / "data", server.directory / "copy")
            server.restart()
            await broker.request("POST", "database/reset/pg")
            assert (await broker.request("POST", "sys/leases/revoke", {"lease_id": revoked["lease_id"]})).status == 204
            made = (await broker.request("GET", "database/creds/app")).body
            server.stop()
            (server.directory / "data").rename(server.directory / "newer")
            (server.directory / "copy").rename(server.directory / "data")
            server.restart()
            await broker.request("POST", "database/reset/pg")
            found = await reconciled(broker)
            assert found == {"missing_user": 1, "user_back": 1}
            await reconciled(broker, dry_run=False)
            for lease in (made, revoked):
                async with asyncio.timeout(60):
                    while (await broker.request("POST", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).status != 400:
                        await asyncio.sleep(0.05)
            assert await reconciled(broker) == {}
            state = await broker.request("POST", "sys/leases/lookup", {"lease_id": kept["lease_id"]})
            assert state.data["state"] == "active"
