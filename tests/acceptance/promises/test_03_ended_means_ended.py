"""A lease is gone once sessions are ended, what was owned is dealt with, and the user is dropped."""

from __future__ import annotations

import asyncpg
import pytest

from broker.testing.broker import CREATE_USER, BrokerProcess, until
from broker.testing.database import ENDED, Database
from broker.testing.leasing import BRIEF_S, issue, look_up, revoke, write_role


async def test_promise_3_ended_means_ended(shared: BrokerProcess, database: Database) -> None:
    """Revoking ends the user's open sessions, removes the user, and only then answers."""
    lease = await issue(shared)
    session = await database.log_in(lease["data"])
    assert (await revoke(shared, lease["lease_id"])).status == 204
    with pytest.raises(ENDED):
        await session.execute("SELECT 1")
    session.terminate()
    assert not await database.has(lease["data"]["username"])
    assert (await revoke(shared, lease["lease_id"])).status == 204


async def test_promise_3_expiry_ends_sessions_too(shared: BrokerProcess, database: Database) -> None:
    """A session that outlives its lease is ended without anybody asking."""
    await write_role(shared, "brief", default_ttl=f"{BRIEF_S}s")
    lease = await issue(shared, "brief")
    session = await database.log_in(lease["data"])

    async def ended() -> bool:
        try:
            await session.execute("SELECT 1")
        except ENDED:
            return True
        return False

    await until(ended)
    session.terminate()

    async def gone() -> bool:
        return (await look_up(shared, lease["lease_id"])).status == 400

    await until(gone)
    assert not await database.has(lease["data"]["username"])


async def make_owner(database: Database, login: dict[str, str], table: str) -> asyncpg.Connection[asyncpg.Record]:
    """A session of the user, which owns a table with a row."""
    await database.run(f'GRANT CREATE ON SCHEMA public TO "{login["username"]}"')
    session = await database.log_in(login)
    await session.execute(f"CREATE TABLE {table} (n int); INSERT INTO {table} VALUES (7)")
    return session


async def test_promise_3_owned_objects_are_contained(shared: BrokerProcess, database: Database) -> None:
    """By default nothing owned is destroyed: the user is contained, lookup shows the remedy, and after it the rest happens by itself."""
    lease = await issue(shared)
    username = lease["data"]["username"]
    session = await make_owner(database, lease["data"], "owned_by_default")
    refused = await revoke(shared, lease["lease_id"])
    assert refused.status == 400
    assert "failed to revoke entry" in refused.errors[0]
    with pytest.raises(ENDED):
        await session.execute("SELECT 1")
    session.terminate()
    assert not await database.lets_in(lease["data"])
    assert await database.has(username)
    shown = (await look_up(shared, lease["lease_id"])).data
    assert shown["state"] in ("revoking", "stuck")
    assert shown["revoke_error"]
    assert any(username in statement for statement in shown["remedy"]), shown
    # What an operator decides: the table gets another owner. The grant of this test goes with the user's other traces.
    await database.run(f"ALTER TABLE owned_by_default OWNER TO {database.server.superuser}")

    async def gone() -> bool:
        return not await database.has(username)

    await until(gone)
    [row] = await database.ask("SELECT n FROM owned_by_default")
    assert row["n"] == 7
    await database.run("DROP TABLE owned_by_default")


async def test_promise_3_remedy_as_shown_lets_it_finish(shared: BrokerProcess, database: Database) -> None:
    """The statements that lookup shows can be run as they are, and the revocation then finishes."""
    lease = await issue(shared)
    session = await make_owner(database, lease["data"], "owned_for_remedy")
    await revoke(shared, lease["lease_id"])
    session.terminate()
    shown = (await look_up(shared, lease["lease_id"])).data
    for statement in shown["remedy"]:
        await database.run(statement.replace("<new owner>", database.server.superuser))
    assert (await revoke(shared, lease["lease_id"])).status == 204, shown
    assert not await database.has(lease["data"]["username"])
    await database.run("DROP TABLE IF EXISTS owned_for_remedy")


async def test_promise_3_owned_objects_are_dropped_on_demand(shared: BrokerProcess, database: Database) -> None:
    """Where the role says so, what the user owns goes with it."""
    role = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "owned_objects": "drop"}
    warned = await shared.request("PUT", "database/roles/owning", role)
    assert "destroyed" in warned.body["warnings"][0]
    lease = await issue(shared, "owning")
    session = await make_owner(database, lease["data"], "owned_to_drop")
    assert (await revoke(shared, lease["lease_id"])).status == 204
    session.terminate()
    assert not await database.has(lease["data"]["username"])
    assert not await database.ask("SELECT 1 FROM pg_class WHERE relname = 'owned_to_drop'")
