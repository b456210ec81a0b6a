"""Locks that others hold on the server delay nobody for long, and nobody by a lock that is the broker's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms
from broker_postgresql import batch

ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
FORMER_KEY = 0x62726F6B6572
"""Of the advisory lock that once stood for the turn of those who grant and revoke."""
MANY = 64
WAITS_AT_MOST = 10
"""Of a second each, before the eight that one call waits for locks are over."""
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
    async with asyncio.timeout(45):
        held = errors_of(await scene.engine.release(users), users)
    assert all(isinstance(error, UserRemains) for error in held)
    await stranger.execute("ROLLBACK")
    await stranger.close()
    said = await scene.remove(users)
    assert not any(error for errors in said.values() for error in errors)


async def owners(scene: Any) -> dict[str, Any]:
    """Users that own a table each, by its name, the latest made last."""
    terms = Terms(options={"grant_roles": ["readers"], "owned_objects": "drop"})
    users = sorted([user for user, _ in await scene.prepare(MANY, terms)], key=lambda user: int(user.identity))
    found = {f"held_{user.number}": user for user in users}
    await scene.root.execute(
        ";".join(f'CREATE TABLE {name} (); ALTER TABLE {name} OWNER TO "{user.name}"' for name, user in found.items())
    )
    return found


async def reader(scene: Any, tables: Sequence[str]) -> Any:
    """Somebody in a transaction that has read these tables."""
    stranger = await scene.place.root()
    scene.stack.push_async_callback(stranger.close)
    await stranger.execute(f"BEGIN; LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE")
    return stranger


async def test_locked_objects_of_many_users_hold_up_a_call_briefly(scene: Any, errors_of: Any) -> None:
    """However many users own tables in use, a call waits for some of them; the others hear that their turn did not come, and go later."""
    tables = await owners(scene)
    users = list(tables.values())
    stranger = await reader(scene, list(tables))
    held = errors_of(await scene.engine.release(users), users)
    assert all(isinstance(error, UserRemains) for error in held)
    assert sum("turn did not come" in str(error) for error in held) >= MANY - WAITS_AT_MOST
    assert any("lock timeout" in str(error) for error in held)
    await stranger.execute("ROLLBACK")
    said = await scene.remove(users)
    assert not any(error for errors in said.values() for error in errors)


async def test_users_behind_locked_owners_have_their_turn(scene: Any, errors_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners of what nobody uses are released though many come before them whose tables are in use: a call begins anywhere among them."""
    tables = await owners(scene)
    users = list(tables.values())
    await reader(scene, list(tables)[:-2])
    monkeypatch.setattr(batch, "random_below", lambda count: count - 2)
    held = errors_of(await scene.engine.release(users), users)
    assert [place for place, error in enumerate(held) if error is None] == [MANY - 2, MANY - 1]
