"""Objects by the thousand: on a server whose lock table is too small for them, users that own them are gone all the same."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import UserRemains, WorkContinues
from broker.model import Terms
from broker.testing.postgresql import PostgresServer
from broker_postgresql import bulk, ownership

TABLES = 4_000
DATABASES = ("app", "other")
CRAMPED = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "40",
    "max_locks_per_transaction": "10",
    "max_prepared_transactions": "10",
    "shared_preload_libraries": "pg_stat_statements",
}
"""Room for some 2,000 locks."""


@pytest.fixture(scope="module")
def prepared_server(binaries: Path, set_up: Callable[[PostgresServer], None]) -> Iterator[PostgresServer]:
    """A server of these tests' own, with a small lock table."""
    with PostgresServer(binaries, extra_config=CRAMPED) as server:
        set_up(server)
        yield server


@pytest.fixture
async def keeper(scene: Any) -> AsyncIterator[Any]:
    """The scene with an heir `keeper`, whose things are taken away by the hundred in the end."""
    await scene.root.execute("CREATE ROLE keeper; GRANT keeper TO limited")
    for database in DATABASES:
        wire = await scene.place.root(database)
        await wire.execute("GRANT CREATE ON SCHEMA public TO keeper")
        await wire.close()
    yield scene
    for database in DATABASES:
        wire = await scene.place.root(database)
        await _drop_all(wire, "v-", "keeper")
        await wire.execute("DROP OWNED BY keeper CASCADE")
        await wire.close()
    await scene.root.execute("DROP ROLE keeper")


async def _drop_all(wire: Any, *beginnings: str) -> None:
    for beginning in beginnings:
        names = await wire.fetch(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND starts_with(relowner::regrole::text, $1)",
            '"v-' if beginning == "v-" else beginning,
        )
        for start in range(0, len(names), 50):
            await wire.execute(f"DROP TABLE {', '.join(row[0] for row in names[start : start + 50])} CASCADE")


def terms(owned: str = "drop", **options: Any) -> Terms:
    """A role whose users own things."""
    options = {"reassign_to": "keeper"} | options if owned == "reassign" else options
    return Terms(options={"grant_roles": ["readers"], "owned_objects": owned, **options})


async def owning(scene: Any, of: Terms, statement: str, count: int, databases: tuple[str, ...] = DATABASES) -> Any:
    """A user that ran a statement as itself for 1 to `count`, {i}, in these databases."""
    user, password = await scene.create(of)
    for database in databases:
        wire = await scene.session(user.name, password, database)
        for start in range(0, count, 100):
            texts = (statement.replace("{n}", f"{user.number}").replace("{i}", f"{i}") for i in range(start, start + 100))
            await wire.execute(";".join(texts))
    return user


async def owned(scene: Any, name: str) -> int:
    """How much a role owns, in all databases."""
    query = "SELECT count(*) FROM pg_shdepend d JOIN pg_roles r ON r.oid = refobjid WHERE deptype = 'o' AND rolname = $1::text"
    return int(await scene.root.fetchval(query, name))


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def test_owner_of_thousands_of_tables_is_gone(keeper: Any) -> None:
    """4,000 tables, more than one transaction can lock here, are dropped; others of the batch and their tables fare as always."""
    heavy = await owning(keeper, terms(), "CREATE TABLE h_{n}_{i} (a serial PRIMARY KEY)", TABLES, ("app",))
    light = await owning(keeper, terms("reassign"), "CREATE TABLE l_{n}_{i} (a int)", 1, ("app",))
    with pytest.raises(Exception, match="out of shared memory"):
        await keeper.root.execute(f'DROP OWNED BY "{heavy.name}"')
    said = await keeper.remove([heavy, light])
    assert said["drop"][1] is None
    while not gone(said):
        assert isinstance(said["release"][0], WorkContinues), said
        said = await keeper.remove([heavy])
    assert not await keeper.exists(heavy.name)
    assert await owned(keeper, "keeper") == 100


async def test_thousands_of_objects_of_every_kind_are_handed_over(keeper: Any) -> None:
    """Tables, sequences, large objects, types and schemas in two databases all reach the heir, row for row."""
    statement = (
        "CREATE TABLE h_{n}_{i} (a serial, b int DEFAULT 3); CREATE TYPE e_{n}_{i} AS ENUM ('a');"
        "CREATE SEQUENCE q_{n}_{i}; SELECT lo_create(0)"
    )
    user = await owning(keeper, terms("reassign"), statement, 400)
    before = await owned(keeper, user.name)
    assert gone(await keeper.remove([user]))
    assert await owned(keeper, "keeper") == before == 400 * 2 * 5
    for database in DATABASES:
        wire = await keeper.place.root(database)
        await wire.execute("SELECT lo_unlink(oid) FROM (SELECT oid FROM pg_largeobject_metadata LIMIT 200) l")
        await wire.execute("SELECT lo_unlink(oid) FROM (SELECT oid FROM pg_largeobject_metadata LIMIT 200) l")
        for kind, letter in (("TYPE", "e"), ("SEQUENCE", "q")):
            for start in range(0, 400, 100):
                names = ", ".join(f"{letter}_{user.number}_{i}" for i in range(start, start + 100))
                await wire.execute(f"DROP {kind} {names}")
        await wire.close()


@pytest.mark.parametrize(("count", "limit_s"), [(TABLES, 60.0), (200, 0.0)])
async def test_heir_that_may_not_create_is_told_by_the_slice(
    keeper: Any, monkeypatch: pytest.MonkeyPatch, count: int, limit_s: float
) -> None:
    """Many tables go by the slice, which asks more of the heir, and takes its time to be refused; with the very grant told they go."""
    if not keeper.place.limited:
        return  # A superuser hands anything over to anybody.
    await keeper.root.execute("REVOKE CREATE ON SCHEMA public FROM keeper; GRANT keeper TO limited WITH ADMIN OPTION")
    of = terms("reassign", grant_roles=["readers", "keeper"])
    user = await owning(keeper, of, "CREATE TABLE h_{n}_{i} (a int)", count, ("app",))
    monkeypatch.setattr(ownership, "_ALONE_S", limit_s)
    [error] = (await keeper.remove([user]))["release"]
    assert error.remedy == ('/* in database "app" */ GRANT CREATE ON SCHEMA public TO keeper;',)
    monkeypatch.setattr(ownership, "_ALONE_S", 60.0)
    await keeper.root.execute(error.remedy[0])
    while not gone(said := await keeper.remove([user])):
        assert isinstance(said["release"][0], WorkContinues), said
    assert await owned(keeper, "keeper") == count


async def test_code_by_the_thousand_is_dropped(keeper: Any) -> None:
    """Views that stand on one another, functions and triggers in their hundreds are dropped, and the tables handed over."""
    statement = (
        "CREATE FUNCTION f_{n}_{i}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TABLE h_{n}_{i} (a int);"
        "CREATE TRIGGER g BEFORE INSERT ON h_{n}_{i} FOR EACH ROW EXECUTE FUNCTION f_{n}_{i}();"
        "CREATE OR REPLACE VIEW v_{n} AS SELECT 1 AS a; CREATE VIEW v_{n}_{i} AS SELECT * FROM v_{n}"
    )
    user = await owning(keeper, terms("reassign", owned_code="drop"), statement, 300, ("app",))
    assert gone(await keeper.remove([user]))
    assert await owned(keeper, "keeper") == 300


async def test_tables_that_hold_on_to_one_another_are_dropped(keeper: Any) -> None:
    """Foreign keys in a circle, views upon views and a table's many partitions keep no slice from being dropped."""
    statement = (
        "CREATE TABLE h_{n}_{i} (a int PRIMARY KEY, b int); CREATE VIEW v_{n}_{i} AS SELECT * FROM h_{n}_{i};"
        "CREATE TABLE IF NOT EXISTS p_{n} (a int) PARTITION BY LIST (a);"
        "CREATE TABLE p_{n}_{i} PARTITION OF p_{n} FOR VALUES IN ({i})"
    )
    user, password = await keeper.create(terms())
    wire = await keeper.session(user.name, password)
    count = 400
    for i in range(count):
        await wire.execute(statement.replace("{n}", f"{user.number}").replace("{i}", f"{i}"))
    for i in range(count):
        await wire.execute(
            f"ALTER TABLE h_{user.number}_{i} ADD FOREIGN KEY (b) REFERENCES h_{user.number}_{(i + 1) % count} (a)"
        )
    assert gone(await keeper.remove([user]))
    assert not await keeper.exists(user.name)


async def test_work_is_taken_up_where_it_stopped(keeper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose time is up says that it came further, and the next goes on from there instead of beginning anew."""
    user = await owning(keeper, terms(), "CREATE TABLE h_{n}_{i} (a int)", 600, ("app",))
    ticks = iter(range(10_000))
    monkeypatch.setattr(bulk, "stopwatch_s", lambda: next(ticks))
    monkeypatch.setattr(ownership, "stopwatch_s", lambda: 0)
    monkeypatch.setattr(ownership, "_ALONE_S", 2)
    left = [await owned(keeper, user.name)]
    while True:
        said = await keeper.remove([user])
        if gone(said):
            break
        [error] = said["release"]
        assert isinstance(error, WorkContinues)
        left.append(await owned(keeper, user.name))
        ticks = iter(range(10_000))
    assert left == [600, 400, 200]


async def test_call_without_progress_is_a_failure(keeper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no object could be freed in the time, the user counts as held up, so that somebody is told."""
    user = await owning(keeper, terms(), "CREATE TABLE h_{n}_{i} (a int)", 200, ("app",))
    monkeypatch.setattr(ownership, "_ALONE_S", 0)
    [error] = (await keeper.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert not isinstance(error, WorkContinues)


async def test_object_in_use_keeps_itself_alone(keeper: Any) -> None:
    """Of hundreds of tables the one that somebody reads remains, with the reader undisturbed; the user is gone afterwards."""
    user = await owning(keeper, terms(), "CREATE TABLE h_{n}_{i} (a int)", 200, ("app",))
    reader = await keeper.place.root()
    await reader.execute(f"BEGIN; SELECT * FROM h_{user.number}_77")
    [error] = (await keeper.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert await owned(keeper, user.name) == 1
    await reader.execute(f"SELECT * FROM h_{user.number}_77; COMMIT")
    await reader.close()
    assert gone(await keeper.remove([user]))


async def test_memory_does_not_grow_with_large_objects(keeper: Any) -> None:
    """20,000 large objects are looked through in bounded memory, and none is left."""
    user, password = await keeper.create(terms())
    wire = await keeper.session(user.name, password)
    for _ in range(200):
        await wire.execute("SELECT lo_create(0) FROM generate_series(1, 100)")
    tracemalloc.start()
    try:
        said = await keeper.remove([user])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    while not gone(said):
        assert isinstance(said["release"][0], WorkContinues), said
        said = await keeper.remove([user])
    assert peak < 16 << 20
    assert not await keeper.root.fetchval("SELECT count(*) FROM pg_largeobject_metadata")


async def test_owner_that_is_kept_costs_little(keeper: Any) -> None:
    """A contained owner of thousands is told with a few names and the number, and nothing of it is touched."""
    user = await owning(keeper, Terms(options={"grant_roles": ["readers"]}), "CREATE TABLE h_{n}_{i} (a int)", 500)
    [error] = (await keeper.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert sorted(len(remedy) < 400 for remedy in error.remedy) == [True, True]
    assert "and 495 more" in error.remedy[0]
    assert "500 objects" in error.remedy[1]
    assert await owned(keeper, user.name) == 1_000


async def test_owner_that_is_kept_goes_by_the_statements_told(keeper: Any) -> None:
    """The very statements that are told hand over 4,000 tables where one statement can't lock them all; then the user is dropped."""
    user = await owning(
        keeper, Terms(options={"grant_roles": ["readers"]}), "CREATE TABLE h_{n}_{i} (a serial PRIMARY KEY)", TABLES
    )
    [error] = (await keeper.remove([user]))["release"]
    left = f"left_over_{user.identity}"
    try:
        for remedy in error.remedy:
            wire = await keeper.place.root(remedy.split('"')[1])
            await wire.execute(remedy)
            await wire.close()
        assert gone(await keeper.remove([user]))
        assert await owned(keeper, left) == TABLES * 2 * 2
    finally:
        for database in DATABASES:
            wire = await keeper.place.root(database)
            await _drop_all(wire, "v-", left)
            await wire.close()
        await keeper.root.execute(f"DROP ROLE IF EXISTS {left}")


async def test_slices_of_two_batches_go_side_by_side(keeper: Any) -> None:
    """Two calls for two owners of hundreds at the same time both end well."""
    users = [await owning(keeper, terms(), "CREATE TABLE h_{n}_{i} (a int)", 300, ("app",)) for _ in range(2)]
    said = await asyncio.gather(*(keeper.remove([user]) for user in users))
    assert all(gone(one) for one in said)
