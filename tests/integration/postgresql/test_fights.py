"""A leased user that fights back is contained at once, and gone or held with the very statement that ends it; nobody else is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

QUIET = Terms(options={"grant_roles": ["readers"], "owned_objects": "drop"})
KEEPING = Terms(options={"grant_roles": ["readers"], "owned_objects": "contain"})


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
THOUSANDS = (
    "DO 'BEGIN FOR i IN 1..8 LOOP FOR j IN 1..500 LOOP EXECUTE format(''CREATE TABLE f_{n}_%s (a int)'', i * 500 + j); END LOOP;"
    " COMMIT; END LOOP; END'"
)
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
    "owns 4,000 tables": [THOUSANDS],
    "catches what ends it": ["CREATE FUNCTION f_{n}() RETURNS void LANGUAGE plpgsql AS " + STUBBORN, "LOOP SELECT f_{n}()"],
    "names objects to hurt": ['CREATE TABLE "f_{n}\'; DROP ROLE readers; --" (a int); CREATE TABLE "*/ f_{n}" (a int)'],
    "keeps cursors and temporary tables": [
        "CREATE TEMPORARY TABLE f_{n} (a int); BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    ],
}  # fmt: skip
"""What a user does in sessions of its own, which stay open."""


async def fight(scene: Any, of: Terms, kind: str) -> tuple[Any, Any, list[asyncio.Task[Any]]]:
    """A user that does so in sessions which stay open, its password, and what it still runs."""
    user, password = await scene.create(of)
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
    return user, password, running


async def contain_at_once(scene: Any, user: Any, password: Any) -> None:
    """The first two stages, each called once, leave the user no login and no session, whatever becomes of the rest."""
    for verb in (scene.engine.disable, scene.engine.end_sessions):
        [outcome] = await verb([user])
        assert outcome.error is None
    assert await contained(scene, user, password)


@pytest.mark.parametrize("kind", FIGHTS)
async def test_fighting_user_is_gone(scene: Any, bystander: Any, kind: str) -> None:
    """Whatever a user does with its own means, one call of each of two stages contains it, and one of each other takes it away."""
    user, password, running = await fight(scene, QUIET, kind)
    await contain_at_once(scene, user, password)
    assert gone(await scene.remove([user]))
    assert await contained(scene, user, password)
    assert not await scene.exists(user.name)
    await asyncio.gather(*running, return_exceptions=True)


ROUNDS = 3


@pytest.mark.parametrize("kind", FIGHTS)
async def test_fighting_user_is_kept_with_what_ends_it(scene: Any, bystander: Any, kind: str) -> None:
    """Where its objects are to be kept, it is contained just so, and gone once the statements told were run; nothing it made is lost."""
    user, password, running = await fight(scene, KEEPING, kind)
    await contain_at_once(scene, user, password)
    made = await _owned(scene, user.name)
    said = await scene.remove([user])
    assert gone(said) is not any(made)
    for _ in range(ROUNDS):
        if gone(said):
            break
        error = said["release"][0]
        assert isinstance(error, UserRemains)
        assert error.remedy
        assert await contained(scene, user, password)
        for remedy in error.remedy:
            await _finish(scene, remedy)
        said = await scene.remove([user])
    assert gone(said)
    assert not await scene.exists(user.name)
    keeper = f"left_over_{user.identity}"
    assert await _owned(scene, keeper) == made
    await asyncio.gather(*running, return_exceptions=True)
    await _clear(scene, keeper)


async def _owned(scene: Any, name: str) -> list[int]:
    """How many relations, functions and large objects a role owns in each database."""
    query = (
        "SELECT count(*) FROM pg_shdepend d WHERE d.refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1::text) AND d.deptype = 'o'"
        " AND d.dbid = (SELECT oid FROM pg_database WHERE datname = $2::text)"
        " AND d.classid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_largeobject'::regclass)"
    )
    return [await scene.root.fetchval(query, name, database) for database in ("app", "other")]


async def _clear(scene: Any, keeper: str) -> None:
    if not await scene.exists(keeper):
        return
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        while names := await wire.fetch(
            "SELECT oid::regclass::text FROM pg_class WHERE relowner = $1::text::regrole AND relkind = 'r' LIMIT 500", keeper
        ):
            await wire.execute(f"DROP TABLE {', '.join(row[0] for row in names)}")
        await wire.execute(f"DROP OWNED BY {keeper}")
        await wire.close()
    await scene.root.execute(f"DROP ROLE {keeper}")


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
        ends, *takes = error.remedy
        assert ends == f"/* in database \"other\", of gang_{scene.origin.boot} */ ROLLBACK PREPARED 'hidden';"
        # What a superuser granted, a plain login may not revoke from version 16 on.
        superuser = scene.place.server.superuser
        taken = f'REVOKE gang_{scene.origin.boot} FROM "{user.name}" GRANTED BY {superuser} CASCADE'
        assert takes == [taken] * scene.place.new
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


async def passing_columns_on(scene: Any, database: str, owner: Any) -> tuple[Any, Any, Any]:
    """A user that passed on, column by column, what it may pass on of a whole table, its password, and a session that has some of it."""
    user, password = await scene.create(QUIET)
    other, word = await scene.create()
    table = f"shared_{user.number}"
    await owner.execute(
        f'CREATE TABLE {table} (a int, "o\'d" int, c int); GRANT SELECT (a) ON {table} TO readers;'
        f'GRANT SELECT, UPDATE ON {table} TO "{user.name}" WITH GRANT OPTION'
    )
    wire = await scene.session(user.name, password, database)
    await wire.execute(
        f'GRANT SELECT ("o\'d", c), UPDATE (a) ON {table} TO "{other.name}"; GRANT SELECT (c) ON {table} TO PUBLIC, readers'
    )
    reader = await scene.session(other.name, word, database)
    assert await reader.fetchval(f"SELECT count(c) FROM {table}") == 0
    return user, password, reader


async def only_theirs(reader: Any, table: str) -> None:
    """What came of the user is gone, and what others were granted by the table's owner is there."""
    assert await reader.fetchval(f"SELECT count(a) FROM {table}") == 0
    with pytest.raises(Exception, match="permission denied"):
        await reader.fetchval(f"SELECT count(c) FROM {table}")
    with pytest.raises(Exception, match="permission denied"):
        await reader.execute(f"UPDATE {table} SET a = 1")


@pytest.mark.parametrize("database", ["app", "other"])
async def test_rights_on_columns_that_were_passed_on_go_with_the_user(scene: Any, bystander: Any, database: str) -> None:
    """Passed on by an option on the whole table, column by column, they are taken back in every database; others' rights stay."""
    owner = await scene.place.root(database)
    user, password, reader = await passing_columns_on(scene, database, owner)
    table = f"shared_{user.number}"
    said = await scene.remove([user])
    assert await contained(scene, user, password)
    await only_theirs(reader, table)
    if scene.place.limited:
        # What the owner granted to the user itself, our login may not revoke.
        await owner.execute(said["release"][0].remedy[0])
        said = await scene.remove([user])
    assert gone(said)
    assert not await scene.exists(user.name)
    await owner.execute(f"DROP TABLE {table}")
    await owner.close()


@pytest.mark.parametrize("database", ["app", "other"])
async def test_rights_on_columns_that_outlived_their_option_are_told(scene: Any, bystander: Any, database: str) -> None:
    """Once the option was revoked by hand the user can't take them back; a superuser's login does, a plain one tells with what."""
    owner = await scene.place.root(database)
    user, password, reader = await passing_columns_on(scene, database, owner)
    table = f"shared_{user.number}"
    await owner.execute(f'REVOKE ALL ON {table} FROM "{user.name}" CASCADE')
    assert await reader.fetchval(f"SELECT count(c) FROM {table}") == 0
    said = await scene.remove([user])
    if scene.place.limited:
        error = said["release"][0]
        assert isinstance(error, UserRemains)
        assert await contained(scene, user, password)
        [remedy] = error.remedy
        assert remedy.startswith(f'/* in database "{database}" */ GRANT')
        await owner.execute(remedy)
        said = await scene.remove([user])
    assert gone(said)
    assert not await scene.exists(user.name)
    await only_theirs(reader, table)
    await owner.execute(f"DROP TABLE {table}")
    await owner.close()


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("ALLOW_CONNECTIONS false", 'ALTER DATABASE "closed" ALLOW_CONNECTIONS true'),
        ("CONNECTION LIMIT 0", 'ALTER DATABASE "closed" CONNECTION LIMIT -1'),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
async def test_database_that_was_closed_is_told(
    scene: Any, bystander: Any, setting: str, remedy: str, *, prepared: bool
) -> None:
    """A database whose owner lets nobody in any more holds a user with objects there, prepared ones too; what opens it is the remedy."""
    await scene.root.execute("CREATE DATABASE closed")
    user, password = await scene.create(QUIET)
    await scene.root.execute(f'GRANT CREATE ON DATABASE closed TO "{user.name}"')
    wire = await scene.session(user.name, password, "closed")
    await wire.execute("CREATE SCHEMA hideout")
    if prepared:
        await wire.execute("BEGIN; CREATE SCHEMA waiting; PREPARE TRANSACTION 'kept'")
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
