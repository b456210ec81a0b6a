"""A leased user that fights back is contained at once, and gone or held with the very statement that ends it; nobody else is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

QUIET = Terms(options={"grant_roles": ["readers"], "owned_objects": "drop"})


@pytest.fixture
async def bystander(scene: Any) -> AsyncIterator[Any]:
    """Another leased user with an open session, a table of its own and rights that it had; all of it is there in the end."""
    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    await wire.execute(f"CREATE TABLE by_{user.number} AS SELECT 1 AS a")
    yield wire
    # Left by a test that failed, it would keep the clearing up waiting.
    for gid, database in await scene.root.fetch("SELECT gid, database FROM pg_prepared_xacts"):
        wire_there = await scene.place.root(database)
        await wire_there.execute("ROLLBACK PREPARED '" + gid.replace("'", "''") + "'")
        await wire_there.close()
    assert await wire.fetchval(f"SELECT a FROM by_{user.number}") == 1
    assert await wire.fetchval("SELECT count(*) FROM goods") == 1
    assert await scene.log_in(user.name, password) is not None


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def contained(scene: Any, user: Any, password: Any) -> bool:
    """Whether the user can't log in and has no session left."""
    sessions = await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usesysid = $1", int(user.identity))
    return sessions == 0 and await scene.log_in(user.name, password) is None


async def _finish(scene: Any, remedy: str) -> None:
    wire = await scene.place.root(remedy.split('"')[1])
    await wire.execute(remedy)
    await wire.close()


STUBBORN = "'BEGIN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN OTHERS OR QUERY_CANCELED THEN NULL; END; END LOOP; END'"
FIGHTS = {
    "holds its own role's row": ["BEGIN; ALTER ROLE {u} PASSWORD 'x'"],
    "keeps changing its own role": ["ALTER ROLE {u} SET work_mem = '1MB'; BEGIN; ALTER ROLE {u} SET statement_timeout = 0"],
    "holds locks on its tables": ["CREATE TABLE f_{n} (a int); BEGIN; LOCK TABLE f_{n}"],
    "prepares a lock on its tables": [
        "CREATE TABLE f_{n} (a int); BEGIN; LOCK TABLE f_{n}; PREPARE TRANSACTION 'f_{n}'",
    ],
    "prepares a table": ["BEGIN; CREATE TABLE f_{n} (a int); PREPARE TRANSACTION 'f''_{n}'"],
    "prepares a change of its role": ["BEGIN; ALTER ROLE {u} PASSWORD 'x'; PREPARE TRANSACTION 'f_{n}'"],
    "makes default privileges": [
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO readers",
    ],
    "makes large objects": ["SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 300)"],
    "makes policies": [
        "CREATE TABLE f_{n} (a int); CREATE POLICY p ON f_{n} TO {u}, readers USING (a > 0)",
        "CREATE TABLE f_{n} (a int); ALTER TABLE f_{n} FORCE ROW LEVEL SECURITY; CREATE POLICY q ON f_{n} TO {u} USING (false)",
    ],
    "grants rights on": [
        "CREATE TABLE f_{n} (a int, b int); GRANT ALL ON f_{n} TO readers WITH GRANT OPTION",
        "CREATE TABLE f_{n} (a int, b int); GRANT UPDATE (a) ON f_{n} TO PUBLIC",
    ],
    "catches what ends it": ["CREATE FUNCTION f_{n}() RETURNS void LANGUAGE plpgsql AS " + STUBBORN, "LOOP SELECT f_{n}()"],
    "names objects to hurt": ['CREATE TABLE "f_{n}\'; DROP ROLE readers; --" (a int); CREATE TABLE "*/ f_{n}" (a int)'],
    "keeps cursors and temporary tables": [
        "CREATE TEMPORARY TABLE f_{n} (a int); BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    ],
}  # fmt: skip
"""What a user does in sessions of its own, which stay open."""


@pytest.mark.parametrize("kind", FIGHTS)
async def test_fighting_user_is_gone(scene: Any, bystander: Any, kind: str) -> None:
    """Whatever a user does with its own means, one call of each stage, or for what it prepared two, takes it away."""
    user, password = await scene.create(QUIET)
    running = []
    for place, wanted in enumerate(FIGHTS[kind]):
        text = wanted.replace("{n}", f"{user.number}").replace("{u}", f'"{user.name}"')
        wire = await scene.session(user.name, password, "other" if place and "LOOP" not in text else "app")
        if text.startswith("LOOP "):
            running.append(asyncio.create_task(wire.execute(text.removeprefix("LOOP "))))
            await _until(scene, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        else:
            # Apart, lest a BEGIN take what precedes it into its transaction.
            first, begin, rest = text.partition("; BEGIN")
            await wire.execute(first)
            await wire.execute(begin + rest or "SELECT 1")
    assert gone(await scene.remove([user]))
    assert await contained(scene, user, password)
    assert not await scene.exists(user.name)
    await asyncio.gather(*running, return_exceptions=True)


async def _until(scene: Any, query: str) -> None:
    while not await scene.root.fetchval(query):
        await asyncio.sleep(0.01)


async def test_prepared_change_under_another_role_is_told(scene: Any, bystander: Any) -> None:
    """A change of its own role that a user prepared as its group: a superuser ends it; a plain login says with what it ends."""
    await scene.root.execute(f"CREATE ROLE gang_{scene.origin.boot}")
    user, password = await scene.create(QUIET)
    await scene.root.execute(f'GRANT gang_{scene.origin.boot} TO "{user.name}"')
    wire = await scene.session(user.name, password, "other")
    await wire.execute(
        f"BEGIN; ALTER ROLE \"{user.name}\" PASSWORD 'x'; SET ROLE gang_{scene.origin.boot}; PREPARE TRANSACTION 'hidden'"
    )
    said = await scene.remove([user])
    if scene.place.limited:
        [error] = said["disable"]
        assert isinstance(error, UserRemains)
        assert error.remedy == (f"/* in database \"other\", of gang_{scene.origin.boot} */ ROLLBACK PREPARED 'hidden';",)
        assert not await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usesysid = $1", int(user.identity))
        await _finish(scene, error.remedy[0])
        said = await scene.remove([user])
    assert gone(said)
    assert not await scene.root.fetchval("SELECT count(*) FROM pg_prepared_xacts")
    await scene.root.execute(f"DROP ROLE gang_{scene.origin.boot}")


async def test_prepared_lock_under_another_role_is_told(scene: Any, bystander: Any) -> None:
    """A lock on its table that a user prepared as its group holds the user, without login, with the statement that ends it."""
    await scene.root.execute(f"CREATE ROLE gang_{scene.origin.boot}")
    user, password = await scene.create(QUIET)
    await scene.root.execute(f'GRANT gang_{scene.origin.boot} TO "{user.name}"')
    wire = await scene.session(user.name, password)
    await wire.execute(f"CREATE TABLE f_{user.number} (a int)")
    await wire.execute(f"BEGIN; LOCK TABLE f_{user.number}; SET ROLE gang_{scene.origin.boot}; PREPARE TRANSACTION 'hidden'")
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert error.remedy[0].endswith("ROLLBACK PREPARED 'hidden';")
    assert await contained(scene, user, password)
    await _finish(scene, error.remedy[0])
    assert gone(await scene.remove([user]))
    await scene.root.execute(f"DROP ROLE gang_{scene.origin.boot}")


async def test_strangers_prepared_transactions_are_left_alone(scene: Any, bystander: Any) -> None:
    """What others prepared, also with changes of their own roles, is there afterwards."""
    await scene.add_stranger("v-stranger", scene.place.password)
    wire = await scene.session("v-stranger", scene.place.password)
    await wire.execute("BEGIN; ALTER ROLE \"v-stranger\" PASSWORD 'x'; PREPARE TRANSACTION 'theirs'")
    user, password = await scene.create(QUIET)
    own = await scene.session(user.name, password)
    await own.execute(f"BEGIN; ALTER ROLE \"{user.name}\" PASSWORD 'x'; PREPARE TRANSACTION 'own'")
    try:
        assert gone(await scene.remove([user]))
        assert await scene.root.fetchval("SELECT array_agg(gid) FROM pg_prepared_xacts") == ["theirs"]
    finally:
        await scene.root.execute("ROLLBACK PREPARED 'theirs'")


async def test_rights_that_were_passed_on_go_with_the_user(scene: Any, bystander: Any) -> None:
    """Rights that a user passed on by its grant option are revoked with it; others' rights on the table stay."""
    user, password = await scene.create(QUIET)
    other, word = await scene.create()
    await scene.root.execute(f"CREATE TABLE shared_{user.number} (a int); GRANT ALL ON shared_{user.number} TO readers")
    if scene.place.limited:
        await scene.root.execute(f"GRANT SELECT ON shared_{user.number} TO limited WITH GRANT OPTION; SET ROLE limited")
    await scene.root.execute(f'GRANT SELECT ON shared_{user.number} TO "{user.name}" WITH GRANT OPTION; RESET ROLE')
    wire = await scene.session(user.name, password)
    await wire.execute(f"GRANT SELECT ON shared_{user.number} TO PUBLIC")
    assert gone(await scene.remove([user]))
    reader = await scene.session(other.name, word)
    assert await reader.fetchval(f"SELECT count(*) FROM shared_{user.number}") == 0
    acl = await scene.root.fetchval("SELECT relacl::text FROM pg_class WHERE relname = $1::text", f"shared_{user.number}")
    assert "readers=" in acl
    assert ",=" not in acl
    await scene.root.execute(f"DROP TABLE shared_{user.number}")


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("ALLOW_CONNECTIONS false", 'ALTER DATABASE "closed" ALLOW_CONNECTIONS true'),
        ("CONNECTION LIMIT 0", 'ALTER DATABASE "closed" CONNECTION LIMIT -1'),
    ],
)
async def test_database_that_was_closed_is_told(scene: Any, bystander: Any, setting: str, remedy: str) -> None:
    """A database whose owner lets nobody in any more holds a user with objects there, and what opens it is the remedy."""
    await scene.root.execute("CREATE DATABASE closed")
    user, password = await scene.create(QUIET)
    await scene.root.execute(f'GRANT CREATE ON DATABASE closed TO "{user.name}"')
    wire = await scene.session(user.name, password, "closed")
    await wire.execute("CREATE SCHEMA hideout")
    await wire.close()
    await scene.root.execute(f"ALTER DATABASE closed {setting}")
    try:
        said = await scene.remove([user])
        if "LIMIT" in setting and not scene.place.limited:
            assert gone(said)
            return
        [error] = said["release"]
        assert isinstance(error, UserRemains)
        assert error.remedy[0] == remedy
        assert await contained(scene, user, password)
        await scene.root.execute(error.remedy[0])
        await scene.root.execute(f'REVOKE CREATE ON DATABASE closed FROM "{user.name}"')
        assert gone(await scene.remove([user]))
    finally:
        await scene.root.execute("ALTER DATABASE closed ALLOW_CONNECTIONS false")
        await scene.root.execute("DROP DATABASE closed WITH (FORCE)")
