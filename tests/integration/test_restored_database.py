"""A real PostgreSQL that is set back to a copy of its files, as `pg_basebackup` makes it, under a whole broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.testing.broker import CREATE_USER, Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.leasing import issue
from broker.testing.postgresql import PostgresServer

QUIET = {"leases": {"reconcile": 0, "default_ttl": "1h", "max_ttl": "24h"}}
"""The job does not come by itself while a test looks."""
LOGIN, PASSWORD = "limited", "a-password"
LONGER_S = 14_400


@pytest.fixture
def server(binaries: Path) -> Iterator[PostgresServer]:
    """A server of the test's own, of each version."""
    with PostgresServer(binaries, extra_config={"fsync": "off"}) as started:
        yield started


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "state", QUIET) as started:
        yield started


@pytest.fixture(params=["superuser", "createrole"])
async def login(request: pytest.FixtureRequest, server: PostgresServer) -> dict[str, str]:
    """The broker's login: the superuser, or one that has CREATEROLE and nothing else."""
    if request.param == "superuser":
        return {}
    await Database(server).run(f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    return {"username": LOGIN, "password": PASSWORD}


async def reconciled(broker: Broker, **order: Any) -> Any:
    """What a run finds on the only connection."""
    assert (await broker.request("POST", "sys/reconcile", order)).status == 202

    async def done() -> bool:
        return bool((await broker.request("GET", "sys/reconcile")).data["state"] == "done")

    await until(done, limit_s=60)
    [report] = (await broker.request("GET", "sys/reconcile")).data["connections"]
    assert not report["error"], report
    return report


def take_copy(server: PostgresServer) -> None:
    """While it runs."""
    done = server._run(
        *("pg_basebackup", "--pgdata", str(server.directory / "copy"), "--dbname", server.superuser_dsn().reveal()),
        *("--checkpoint=fast", "--wal-method=stream", "--no-sync"),
    )
    assert done.returncode == 0, done.stdout


def bring_back(server: PostgresServer) -> None:
    """In the place of the newer files."""
    server.stop()
    (server.directory / "data").rename(server.directory / "newer")
    (server.directory / "copy").rename(server.directory / "data")
    server.start()


async def test_database_restored_to_an_older_copy_is_put_right(
    server: PostgresServer, broker: Broker, login: dict[str, str]
) -> None:
    """A dry run tells users that are back and lost, logins and ends as they were; told to, each is put right; what was in both stays."""
    database, parts = Database(server), broker.daemon.reconciler._parts
    written = await broker.request("PUT", "database/config/pg", connection_to(server, scram_iterations=1, **login))
    assert written.status in {200, 204}, written
    for name, prepared in (("app", 0), ("pooled", 1)):
        role = {"db_name": "pg", "creation_statements": CREATE_USER, "prepared_users": prepared, "rehearse": False}
        assert (await broker.request("PUT", f"database/roles/{name}", role)).status in {200, 204}

    async def pool_is_full() -> bool:
        users = await database.users((await broker.request("GET", "sys/health")).body["cluster_id"])
        return list(users.values()).count(False) == 1

    async def all_settled() -> bool:
        return not await parts.store.unsettled(1)

    kept, revoked, renewed = [await issue(broker) for _ in range(3)]
    await until(pool_is_full)
    take_copy(server)
    assert (await broker.request("POST", "sys/leases/revoke", {"lease_id": revoked["lease_id"]})).status == 204
    longer = await broker.request("POST", "sys/leases/renew", {"lease_id": renewed["lease_id"], "increment": LONGER_S})
    assert longer.body["lease_duration"] == LONGER_S
    made, handed_out = await issue(broker), await issue(broker, "pooled")
    await until(pool_is_full)
    # A restart has logins turned on again that are not known to be on disc; these are.
    await until(all_settled)
    await asyncio.to_thread(bring_back, server)
    assert (await broker.request("POST", "database/reset/pg")).status == 204

    assert await database.lets_in(revoked["data"])
    before = await database.ask("SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles ORDER BY 1")
    # The pool's new user is missing, too.
    differ = {"user_back": 1, "missing_user": 2, "login_off": 1, "ends_early": 1}
    dry = await reconciled(broker)
    assert (dry["found"], dry["amended"]) == (differ, {})
    kinds = {each["username"]: each["kind"] for each in dry["differences"]}
    of = {"user_back": revoked, "missing_user": made, "login_off": handed_out, "ends_early": renewed}
    assert {kind: kinds[lease["data"]["username"]] for kind, lease in of.items()} == {kind: kind for kind in of}
    assert await database.ask("SELECT rolname, rolcanlogin, rolvaliduntil FROM pg_roles ORDER BY 1") == before

    applied = await reconciled(broker, dry_run=False)
    assert (applied["found"], applied["amended"]) == (differ, differ)

    async def ended() -> bool:
        looked_up = [
            await broker.request("POST", "sys/leases/lookup", {"lease_id": lease["lease_id"]}) for lease in (made, revoked)
        ]
        return [answer.status for answer in looked_up] == [400, 400] and not await database.has(revoked["data"]["username"])

    await until(ended, limit_s=60)
    assert not await database.lets_in(revoked["data"])
    for lease in (kept, renewed, handed_out):
        assert await database.lets_in(lease["data"])
    [[left_s]] = await database.ask(
        "SELECT extract(epoch FROM rolvaliduntil - now()) FROM pg_roles WHERE rolname = $1", renewed["data"]["username"]
    )
    assert left_s > LONGER_S - 120
    # The pool is filled anew meanwhile, and an intent is no difference.
    assert (await reconciled(broker))["found"] == {}
