"""What a user leaves below, or above, another owner's table does nothing as the heir for whoever owns the other one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from broker.errors import UserRemains
from broker.model import Terms

KEEPER = "keeper"
PARTED = "CREATE TABLE p_{n} (a int) PARTITION BY LIST (a); "
LINKS = {
    "a partition of the group's table": (
        "SET ROLE readers; " + PARTED + 'RESET ROLE; CREATE TABLE "c_{n} \'x" PARTITION OF p_{n} DEFAULT',
        ("public.p_{n}", 'public."c_{n} \'x"'),
    ),
    "a child of the group's table": (
        "SET ROLE readers; CREATE TABLE p_{n} (a int); RESET ROLE; CREATE TABLE c_{n} () INHERITS (p_{n})",
        "ALTER TABLE public.c_{n} NO INHERIT public.p_{n}",
    ),
    "the group's partition of a table": (
        PARTED + "CREATE TABLE c_{n} PARTITION OF p_{n} DEFAULT; ALTER TABLE c_{n} OWNER TO readers",
        ("public.p_{n}", "public.c_{n}"),
    ),
    "the group's child of a table": (
        "CREATE TABLE p_{n} (a int); CREATE TABLE c_{n} () INHERITS (p_{n}); ALTER TABLE c_{n} OWNER TO readers",
        "ALTER TABLE public.c_{n} NO INHERIT public.p_{n}",
    ),
}
"""What a user makes, and what parts it: a statement, or the table and the partition that one takes off it."""
REFERRED = (
    "CREATE SEQUENCE ran_{n}; GRANT ALL ON SEQUENCE ran_{n} TO PUBLIC; CREATE TYPE key_{n} AS (a int);"
    "CREATE FUNCTION evil_{n}(key_{n}) RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
    " IF current_user <> ALL ('{USER,readers}') THEN PERFORM nextval('public.ran_{n}'); END IF; RETURN ($1).a; END $$;"
    "CREATE CAST (key_{n} AS int) WITH FUNCTION evil_{n}(key_{n}) AS IMPLICIT;"
    "CREATE TABLE p_{n} (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE f_{n} (a key_{n} REFERENCES p_{n});"
    "CREATE TABLE c_{n} PARTITION OF p_{n} FOR VALUES FROM (0) TO (9); CREATE TABLE d_{n} PARTITION OF p_{n} DEFAULT;"
    "INSERT INTO p_{n} VALUES (1), (20); INSERT INTO f_{n} VALUES (ROW(20)); ALTER TABLE d_{n} OWNER TO readers;"
)
"""A table with a foreign key to a partitioned one. To take a partition off, the server calls a function of the user; where that is done by
anybody but the user and its group, it counts, and no rollback undoes that."""


def parting(how: str | tuple[str, str], n: int, oid: int = 0) -> str:
    """The remedy that parts the two tables, in as many words as it is told; `oid` is that of the upper one."""
    if isinstance(how, tuple):
        table, partition = (name.replace("{n}", f"{n}") for name in how)
        above, name = table.replace("'", "''"), partition.replace("'", "''")
        body = (
            f"BEGIN LOCK TABLE ONLY {table}, ONLY {partition} IN ACCESS EXCLUSIVE MODE;"
            " REVOKE GRANT OPTION FOR USAGE ON SCHEMA public FROM PUBLIC;"
            f" IF '{above}'::pg_catalog.regclass OPERATOR(pg_catalog.<>) '{oid}'::pg_catalog.oid THEN RAISE 'another table has that name';"
            " END IF; IF EXISTS (SELECT FROM pg_catalog.pg_constraint"
            f" WHERE confrelid OPERATOR(pg_catalog.=) '{name}'::pg_catalog.regclass AND conparentid OPERATOR(pg_catalog.<>)"
            " 0::pg_catalog.oid) THEN RAISE 'foreign keys refer to the partition'; END IF;"
            f" ALTER TABLE {table} DETACH PARTITION {partition}; END"
        )
        how = "DO '" + body.replace("'", "''") + "'"
    return f'/* in database "app" */ {how};'.replace("{n}", f"{n}")


async def oid_of(scene: Any, user: Any) -> int:
    """The upper one of the user's tables."""
    return int(await scene.root.fetchval("SELECT oid FROM pg_class WHERE relname = $1::text", f"p_{user.number}"))


def terms(code: str) -> Terms:
    """A role whose users' objects are handed over."""
    return Terms(options={"grant_roles": ["readers"], "owned_objects": "reassign", "reassign_to": KEEPER, "owned_code": code})


@pytest.fixture
async def keeper(scene: Any) -> AsyncIterator[Any]:
    """A scene with an heir that may do nothing but own things."""
    await scene.root.execute(f"CREATE ROLE {KEEPER}; GRANT {KEEPER} TO limited; GRANT CREATE ON SCHEMA public TO {KEEPER}")
    yield scene
    await scene.root.execute(f"DROP OWNED BY {KEEPER}, readers CASCADE; DROP ROLE {KEEPER}")
    await scene.root.execute("GRANT SELECT ON goods TO readers; GRANT CREATE ON SCHEMA public TO readers")


async def linking(scene: Any, code: str, statements: str) -> Any:
    """A user that made tables, one of them another owner's."""
    user, password = await scene.create(terms(code))
    wire = await scene.session(user.name, password)
    await wire.execute(statements.replace("{n}", f"{user.number}").replace("USER", user.name))
    return user


async def owners(scene: Any, user: Any) -> set[str]:
    """Who owns the user's tables and those beside them."""
    query = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname ~ $1 AND relkind IN ('r', 'p')"
    return {row[0].strip('"') for row in await scene.root.fetch(query, f"^[pc]_{user.number}($|\\D)")}


def error_of(said: dict[str, list[Any]]) -> UserRemains:
    """Why the only user was not released."""
    [error] = said["release"]
    assert isinstance(error, UserRemains), said
    return error


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def who_ran(scene: Any, user: Any) -> set[str]:
    """As whom a function of another member of the group runs once that puts an index with it on the upper table, or the lower one."""
    other, password = await scene.create()
    wire, n = await scene.session(other.name, password), user.number
    await wire.execute(
        f"CREATE TABLE loot_{n} (who text); GRANT ALL ON loot_{n} TO PUBLIC;"
        f"CREATE FUNCTION act_{n}() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.loot_{n} VALUES (current_user);"
        " RETURN 1; END $$;"
        f"CREATE FUNCTION evil_{n}(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN public.act_{n}(); END $$"
    )
    for table in ("p", "c"):
        mine = "SELECT relowner = 'readers'::regrole FROM pg_class WHERE relname = $1::text"
        if await wire.fetchval(mine, f"{table}_{n}"):
            await wire.execute(f"SET ROLE readers; CREATE INDEX ON {table}_{n} (evil_{n}(a)); RESET ROLE")
    return {row[0] for row in await wire.fetch(f"SELECT who FROM loot_{n}")}


@pytest.mark.parametrize("kind", LINKS)
async def test_link_to_anothers_table_keeps_its_user(keeper: Any, kind: str) -> None:
    """The table stays with its owner until the very statement that is told has parted the two; then nobody's index acts as the heir."""
    made, parts = LINKS[kind]
    user = await linking(keeper, "contain", made)
    await keeper.root.execute(f"INSERT INTO p_{user.number} VALUES (1)")
    error = error_of(await keeper.remove([user]))
    assert f"table public.p_{user.number}" in str(error)
    assert error.remedy == (parting(parts, user.number, await oid_of(keeper, user)),)
    assert await owners(keeper, user) == {user.name, "readers"}
    await keeper.root.execute(error.remedy[0])
    assert gone(await keeper.remove([user]))
    assert await owners(keeper, user) == {KEEPER, "readers"}
    assert await who_ran(keeper, user) <= {"readers"}


@pytest.mark.parametrize("kind", LINKS)
async def test_link_to_anothers_table_is_parted_where_the_role_says_so(keeper: Any, kind: str) -> None:
    """With `owned_code = drop` the two are parted, whichever is the user's, and only the user's goes to the heir."""
    user = await linking(keeper, "drop", LINKS[kind][0])
    await keeper.root.execute(f"INSERT INTO p_{user.number} VALUES (1)")
    assert gone(await keeper.remove([user]))
    assert await owners(keeper, user) == {KEEPER, "readers"}
    assert KEEPER not in await who_ran(keeper, user)


async def test_partition_that_our_login_may_not_detach_keeps_its_user(keeper: Any) -> None:
    """Where the table above is neither the user's nor its group's, a plain login leaves the partition where it is, with what parts it."""
    made, parts = LINKS["a partition of the group's table"]
    user = await linking(keeper, "drop", made)
    await keeper.root.execute(f"ALTER TABLE p_{user.number} OWNER TO CURRENT_USER")
    said = await keeper.remove([user])
    assert gone(said) is not keeper.place.limited
    if keeper.place.limited:
        assert error_of(said).remedy == (parting(parts, user.number, await oid_of(keeper, user)),)
        assert user.name in await owners(keeper, user)
    await keeper.root.execute(f"DROP TABLE p_{user.number}")


async def test_link_between_own_tables_is_data(keeper: Any) -> None:
    """A partitioned table and its partitions, and a child and its parent, of one owner are handed over together."""
    user = await linking(
        keeper,
        "contain",
        "CREATE TABLE p_{n} (a int) PARTITION BY LIST (a); CREATE TABLE c_{n} PARTITION OF p_{n} FOR VALUES IN (1);"
        "CREATE TABLE p_{n}b (a int); CREATE TABLE c_{n}b () INHERITS (p_{n}b)",
    )
    assert gone(await keeper.remove([user]))
    assert await owners(keeper, user) == {KEEPER}


@pytest.mark.parametrize("code", ["contain", "drop"])
async def test_taking_a_partition_off_runs_no_code_of_its_user(keeper: Any, code: str) -> None:
    """A foreign key to the whole table goes before its partition is taken off: the server would look through it with our rights."""
    user = await linking(keeper, code, REFERRED + "ALTER TABLE c_{n} OWNER TO readers")
    said = await keeper.remove([user])
    if code == "contain":
        for statement in (remedy := error_of(said).remedy):
            await keeper.root.execute(statement)
        assert "DROP CONSTRAINT" in remedy[0]
        said = await keeper.remove([user])
    assert gone(said)
    assert not await keeper.root.fetchval(f"SELECT is_called FROM ran_{user.number}")
    assert await owners(keeper, user) == {KEEPER, "readers"}


async def test_partition_of_a_table_that_others_refer_to_stays(keeper: Any) -> None:
    """Where the foreign key is between others' tables it is not ours to drop: user and partition stay, and no remedy runs its code."""
    user = await linking(
        keeper,
        "drop",
        REFERRED
        + "ALTER TABLE p_{n} OWNER TO readers; ALTER TABLE f_{n} OWNER TO readers; ALTER TYPE key_{n} OWNER TO readers;"
        + "ALTER FUNCTION evil_{n} OWNER TO readers; ALTER SEQUENCE ran_{n} OWNER TO readers",
    )
    n, ran = user.number, f"SELECT is_called FROM ran_{user.number}"
    error = error_of(await keeper.remove([user]))
    assert error.remedy == (
        f'/* in database "app" */ ALTER TABLE public.f_{n} DROP CONSTRAINT f_{n}_a_fkey;',
        parting((f"public.p_{n}", f"public.c_{n}"), n, await oid_of(keeper, user)),
    )
    with pytest.raises(asyncpg.RaiseError, match="foreign keys refer"):
        await keeper.root.execute(error.remedy[1])
    assert await owners(keeper, user) == {user.name, "readers"}
    assert not await keeper.root.fetchval(ran)
    for statement in error.remedy:
        await keeper.root.execute(statement)
    assert gone(await keeper.remove([user]))
    assert not await keeper.root.fetchval(ran)


async def test_statement_told_leaves_another_table_of_the_name_alone(keeper: Any) -> None:
    """Whoever owns the upper one may have put a table with code in its key in its place, once the statement is told: it is let be."""
    made, _ = LINKS["a partition of the group's table"]
    user = await linking(keeper, "contain", made)
    n = user.number
    [remedy] = error_of(await keeper.remove([user])).remedy
    await keeper.root.execute(
        f"ALTER TABLE p_{n} RENAME TO q_{n}; CREATE SEQUENCE ran_{n}; CREATE FUNCTION evil_{n}(int) RETURNS int LANGUAGE plpgsql"
        f" IMMUTABLE AS $$ BEGIN PERFORM nextval('public.ran_{n}'); RETURN 1; END $$;"
        f"CREATE TABLE p_{n} (a int) PARTITION BY RANGE ((a + evil_{n}(1))); CREATE TABLE d_{n} PARTITION OF p_{n} DEFAULT;"
        f"ALTER SEQUENCE ran_{n} RESTART"
    )
    with pytest.raises(asyncpg.RaiseError, match="another table"):
        await keeper.root.execute(remedy)
    assert not await keeper.root.fetchval(f"SELECT is_called FROM ran_{n}")
    await keeper.root.execute(
        f"DROP TABLE p_{n}; DROP FUNCTION evil_{n}; DROP SEQUENCE ran_{n}; ALTER TABLE q_{n} RENAME TO p_{n}"
    )
    await keeper.root.execute(remedy)
    assert gone(await keeper.remove([user]))
