"""Locks that others hold on the server delay nobody for long, and nobody by a lock that is the broker's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
FORMER_KEY = 0x62726F6B6572
"""Of the advisory lock that once stood for the turn of those who grant and revoke."""
MANY = 64
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
async def table(scene: Any) -> AsyncIterator[str]:
    """A table on which our login may grant."""
    name = f"locked_{scene.origin.boot}"
    await scene.root.execute(f"CREATE TABLE {name} (a int); GRANT SELECT ON {name} TO limited WITH GRANT OPTION")
    yield name
    # Left by a test that failed, a lock would keep the clearing up waiting.
    holders = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = to_regclass($1::text) AND pid <> pg_backend_pid()"
    )
    await scene.root.fetch(holders, name)
    await scene.root.execute(f"DROP TABLE {name}")


def granting(table: str) -> Terms:
    """A role with a grant of its own on the table."""
    return Terms(creation=(ROLE, f'GRANT SELECT ON {table} TO "{{{{name}}}}"'))


async def test_advisory_locks_of_strangers_hold_up_nobody(scene: Any, table: str) -> None:
    """Whatever advisory lock a user takes: users whose grants collided with others' are made all the same, and go."""
    await scene.add_stranger("v-stranger", scene.place.password)
    for database in ("app", "other"):
        wire = await scene.session("v-stranger", scene.place.password, database)
        await wire.execute(f"SELECT pg_advisory_lock({FORMER_KEY})")
    collision = await scene.place.root()
    await collision.execute(f"BEGIN; GRANT SELECT ON {table} TO readers")
    order = await scene.order(granting(table))
    making = asyncio.create_task(scene.engine.create(order))
    while not await scene.root.fetchval(WAITING):
        await asyncio.sleep(0.01)
    await collision.execute("COMMIT")
    await collision.close()
    assert await making
    said = await scene.remove([order.user])
    assert not any(error for errors in said.values() for error in errors)


async def test_lock_on_a_table_holds_up_a_batch_briefly(scene: Any, table: str, errors_of: Any) -> None:
    """While a stranger's transaction holds a table, a batch of users with grants on it fails within seconds, and goes after it."""
    users = [user for user, _ in await scene.prepare(MANY, granting(table))]
    stranger = await scene.place.root()
    await stranger.execute(f"BEGIN; LOCK TABLE {table}; ALTER TABLE {table} ADD b int")
    async with asyncio.timeout(15):
        held = errors_of(await scene.engine.release(users), users)
    assert all(isinstance(error, UserRemains) for error in held)
    await stranger.execute("ROLLBACK")
    await stranger.close()
    said = await scene.remove(users)
    assert not any(error for errors in said.values() for error in errors)
