"""Handing over gives nobody rights: every way in which what a user leaves could act as its next owner is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

KEEPER = "keeper"
FUNCTION = "CREATE FUNCTION f_{n}(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'; "
TRIGGER = "CREATE FUNCTION g_{n}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
MOOD = "CREATE TYPE e_{n} AS ENUM ('a'); "
CODE = {
    "view": ("CREATE VIEW x_{n} AS SELECT * FROM secret", "x_{n}"),
    "view as its caller": ("CREATE VIEW x_{n} WITH (security_invoker = true) AS SELECT 1", "x_{n}"),
    "materialized view": ("CREATE MATERIALIZED VIEW x_{n} AS SELECT 1 AS a", "x_{n}"),
    "function as its owner": (
        "CREATE FUNCTION x_{n}(\"o'd d\" text) RETURNS int SECURITY DEFINER LANGUAGE sql AS 'SELECT 1'",
        "x_{n}",
    ),
    "function": ("CREATE FUNCTION x_{n}() RETURNS int LANGUAGE sql AS 'SELECT 1'", "x_{n}"),
    "procedure": ("CREATE PROCEDURE x_{n}() LANGUAGE sql AS 'SELECT 1'", "x_{n}"),
    "aggregate": ("CREATE AGGREGATE x_{n}(int) (SFUNC = int4pl, STYPE = int)", "x_{n}"),
    "operator": ("CREATE OPERATOR #@# (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)", "#@#"),
    "rule": ('CREATE RULE "x_{n} r" AS ON INSERT TO t_{n} DO ALSO NOTHING', "x_{n} r"),
    "trigger": (TRIGGER + "CREATE TRIGGER x_{n} BEFORE DELETE ON t_{n} FOR EACH ROW EXECUTE FUNCTION g_{n}()", "x_{n}"),
    "trigger of another's function": (
        "CREATE TRIGGER x_{n} BEFORE UPDATE ON t_{n} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "x_{n}",
    ),
    "policy": ("CREATE POLICY x_{n} ON t_{n} USING (true)", "x_{n}"),
    "foreign key that acts": (
        "ALTER TABLE t_{n} ADD CONSTRAINT x_{n} FOREIGN KEY (b) REFERENCES t_{n} ON DELETE SET DEFAULT",
        "x_{n}",
    ),
    "default": (FUNCTION + "ALTER TABLE t_{n} ALTER b SET DEFAULT f_{n}(1)", "t_{n}"),
    "check": (FUNCTION + "ALTER TABLE t_{n} ADD CONSTRAINT x_{n} CHECK (f_{n}(b) > 0)", "x_{n}"),
    "generated column": (FUNCTION + "ALTER TABLE t_{n} ADD c int GENERATED ALWAYS AS (f_{n}(b)) STORED", "t_{n}"),
    "index over a function": (FUNCTION + "CREATE INDEX x_{n} ON t_{n} (f_{n}(b))", "x_{n}"),
    "index with a condition": (FUNCTION + "CREATE INDEX x_{n} ON t_{n} (b) WHERE f_{n}(b) > 0", "x_{n}"),
    "index over a domain": (
        "CREATE DOMAIN d_{n} AS int CHECK (VALUE > 0); CREATE INDEX x_{n} ON t_{n} ((b::d_{n}))",
        "x_{n}",
    ),
    "exclusion over a function": (FUNCTION + "ALTER TABLE t_{n} ADD CONSTRAINT x_{n} EXCLUDE ((f_{n}(b)) WITH =)", "x_{n}"),
    "statistics over a function": (FUNCTION + "CREATE STATISTICS x_{n} ON (f_{n}(b)), a FROM t_{n}", "x_{n}"),
    "cast of a type": (
        MOOD + "CREATE FUNCTION x_{n}(e_{n}) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "CREATE CAST (e_{n} AS int) WITH FUNCTION x_{n}(e_{n}) AS IMPLICIT",
        "e_{n}",
    ),
    "range type": ("CREATE TYPE x_{n} AS RANGE (SUBTYPE = int)", "x_{n}"),
}
"""What a user makes, and what it is called in what the server says of it."""
LASTING = {
    "partition key over a function": (FUNCTION, "CREATE TABLE p_{n} (a int) PARTITION BY RANGE (f_{n}(a))"),
    "column of a range type": ("CREATE TYPE r_{n} AS RANGE (SUBTYPE = int)", "CREATE TABLE c_{n} (a r_{n})"),
    "column of an array of ranges": ("CREATE TYPE r_{n} AS RANGE (SUBTYPE = int)", "CREATE TABLE c_{n} (a r_{n}[])"),
    "column of a domain over a range": (
        "CREATE TYPE r_{n} AS RANGE (SUBTYPE = int); CREATE DOMAIN d_{n} AS r_{n}",
        "CREATE TABLE c_{n} (a d_{n})",
    ),
}
"""What can't be taken away without data: what an accomplice makes, and what the user makes with it."""
BORROWED = {
    "index over a function": (FUNCTION, "CREATE INDEX x_{n} ON t_{n} (f_{n}(b))"),
    "check": (FUNCTION, "ALTER TABLE t_{n} ADD CONSTRAINT x_{n} CHECK (f_{n}(b) > 0)"),
    "trigger": (TRIGGER, "CREATE TRIGGER x_{n} BEFORE DELETE ON t_{n} FOR EACH ROW EXECUTE FUNCTION g_{n}()"),
}
"""Code that an accomplice makes, and a user whose table runs it."""


def terms(code: str = "contain", heir: str = KEEPER) -> Terms:
    """A role whose users' objects are handed over."""
    return Terms(options={"grant_roles": ["readers"], "owned_objects": "reassign", "reassign_to": heir, "owned_code": code})


@pytest.fixture
async def keeper(scene: Any) -> AsyncIterator[Any]:
    """A scene with an heir that may do nothing but own things, and a secret of somebody else."""
    await scene.root.execute(
        f"CREATE ROLE {KEEPER}; GRANT {KEEPER} TO limited; GRANT CREATE ON SCHEMA public TO {KEEPER};"
        "CREATE TABLE secret AS SELECT 'plain' AS word"
    )
    yield scene
    await scene.root.execute(f"DROP OWNED BY {KEEPER} CASCADE; DROP ROLE {KEEPER}; DROP TABLE IF EXISTS secret CASCADE")


async def owning(scene: Any, of: Terms, statements: str) -> Any:
    """A user that owns a table with rows and made the rest of its statements as itself, and let everybody use it."""
    user, password = await scene.create(of)
    wire = await scene.session(user.name, password)
    table = "CREATE TABLE t_{n} (a int PRIMARY KEY, b int DEFAULT 1 CHECK (b >= 0)); INSERT INTO t_{n} VALUES (1); "
    await wire.execute((table + statements).replace("{n}", f"{user.number}"))
    return user


async def with_accomplice(scene: Any, of: Terms, theirs: str, own: str) -> Any:
    """Such a user, after another one made something for it."""
    user, password = await scene.create(of)
    other, word = await scene.create()
    wire = await scene.session(other.name, word)
    await wire.execute(theirs.replace("{n}", f"{user.number}"))
    wire = await scene.session(user.name, password)
    table = "CREATE TABLE t_{n} (a int PRIMARY KEY, b int DEFAULT 1); INSERT INTO t_{n} VALUES (1); "
    await wire.execute((table + own).replace("{n}", f"{user.number}"))
    return user


async def owners(scene: Any, user: Any) -> dict[str, str]:
    """Who owns which relation of the user's number."""
    query = "SELECT relname::text, relowner::regrole::text FROM pg_class WHERE relname ~ $1 AND relkind NOT IN ('i', 't')"
    return {row[0]: row[1].strip('"') for row in await scene.root.fetch(query, f"_{user.number}($|\\D)")}


def error_of(said: dict[str, list[Any]]) -> UserRemains:
    """Why the only user was not released."""
    [error] = said["release"]
    assert isinstance(error, UserRemains), said
    return error


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


@pytest.mark.parametrize("kind", CODE)
async def test_code_keeps_its_user(keeper: Any, kind: str) -> None:
    """By default nothing of a user with code is handed over; it stays without login, until the very statement that is told was run."""
    statements, name = CODE[kind]
    user = await owning(keeper, terms(), statements)
    error = error_of(await keeper.remove([user]))
    assert name.replace("{n}", f"{user.number}") in str(error)
    assert set((await owners(keeper, user)).values()) == {user.name}
    assert not await keeper.root.fetchval("SELECT rolcanlogin FROM pg_roles WHERE oid = $1", int(user.identity))
    while not gone(said := await keeper.remove([user])):
        for statement in error_of(said).remedy:
            await keeper.root.execute(statement)
    assert await keeper.root.fetchval(f"SELECT count(*) FROM t_{user.number}") == 1
    assert set((await owners(keeper, user)).values()) == {KEEPER}


@pytest.mark.parametrize("kind", CODE)
async def test_code_is_dropped_where_the_role_says_so(keeper: Any, kind: str) -> None:
    """With `owned_code = drop` the code is gone, the rows are with the heir, and so is nothing that could act for it."""
    user = await owning(keeper, terms("drop"), CODE[kind][0])
    assert gone(await keeper.remove([user]))
    assert not await keeper.exists(user.name)
    assert await keeper.root.fetchval(f"SELECT count(*) FROM t_{user.number}") == 1
    assert set(await owners(keeper, user)) == {f"t_{user.number}"}
    assert set((await owners(keeper, user)).values()) == {KEEPER}
    kept = "SELECT count(*) FROM pg_proc WHERE proname ~ $1"
    # The server's own utf8_to_iso8859_1 is not the first user's.
    assert not await keeper.root.fetchval(kept, f"^._{user.number}$")


@pytest.mark.parametrize("kind", LASTING)
@pytest.mark.parametrize("code", ["contain", "drop"])
async def test_code_that_is_part_of_data_keeps_its_user(keeper: Any, kind: str, code: str) -> None:
    """Where the code can't be taken away without rows, the user stays whatever the role says, and the rows with it."""
    user = await with_accomplice(keeper, terms(code), *LASTING[kind])
    assert f"_{user.number}" in str(error_of(await keeper.remove([user])))
    assert (await owners(keeper, user))[f"t_{user.number}"] == user.name


@pytest.mark.parametrize("kind", BORROWED)
async def test_code_of_an_accomplice_acts_for_nobody(keeper: Any, kind: str) -> None:
    """A table that would run another user's function as its owner is not handed over before that is taken off it."""
    user = await with_accomplice(keeper, terms(), *BORROWED[kind])
    assert f"x_{user.number}" in str(error_of(await keeper.remove([user])))
    assert (await owners(keeper, user))[f"t_{user.number}"] == user.name
    user = await with_accomplice(keeper, terms("drop"), *BORROWED[kind])
    assert gone(await keeper.remove([user]))
    assert (await owners(keeper, user))[f"t_{user.number}"] == KEEPER
    assert not await keeper.root.fetchval("SELECT count(*) FROM pg_class WHERE relname = $1::text", f"x_{user.number}")


@pytest.mark.parametrize("owner", ["superuser", "accomplice"])
async def test_code_of_an_extension_is_its_owners(keeper: Any, owner: str) -> None:
    """An index over a function of an extension is mere data where a superuser owns that, who need not be feared; another's is code."""
    accomplice, password = await keeper.create()
    await keeper.root.execute("GRANT CREATE ON DATABASE app TO readers")
    try:
        maker = keeper.root if owner == "superuser" else await keeper.session(accomplice.name, password)
        await maker.execute("CREATE EXTENSION fuzzystrmatch")
        user = await owning(keeper, terms(), "CREATE INDEX x_{n} ON t_{n} (soundex(b::text))")
        said = await keeper.remove([user])
        assert gone(said) is (owner == "superuser")
        if owner == "accomplice":
            assert f"x_{user.number}" in str(error_of(said))
        assert (await owners(keeper, user))[f"t_{user.number}"] == (KEEPER if owner == "superuser" else user.name)
    finally:
        await keeper.root.execute("REVOKE CREATE ON DATABASE app FROM readers; DROP EXTENSION IF EXISTS fuzzystrmatch CASCADE")


async def test_mere_data_goes_to_an_heir_without_rights(keeper: Any) -> None:
    """Tables with keys, built-in defaults and checks, sequences, enumerations, schemas and large objects are no code."""
    user = await owning(
        keeper,
        terms(),
        "CREATE TYPE e_{n} AS ENUM ('a'); CREATE TYPE c_{n} AS (a int); CREATE TABLE u_{n} (id serial, at timestamptz DEFAULT now(),"
        " e e_{n}, c c_{n}, r int4range, t int REFERENCES t_{n}, g int GENERATED ALWAYS AS (1 + 1) STORED);"
        " CREATE INDEX ON u_{n} (lower(id::text)) WHERE id > 0; CREATE STATISTICS s_{n} ON id, e FROM u_{n};"
        ' CREATE SEQUENCE q_{n}; CREATE COLLATION o_{n} FROM "C"; SELECT lo_create(3000000 + {n})',
    )
    assert gone(await keeper.remove([user]))
    assert set((await owners(keeper, user)).values()) == {KEEPER}
    large = "SELECT lomowner::regrole::text FROM pg_largeobject_metadata WHERE oid = $1"
    assert await keeper.root.fetchval(large, 3_000_000 + user.number) == KEEPER


async def test_view_on_what_another_user_left_reads_nothing(keeper: Any) -> None:
    """The heir owns what users left before, so a later user's view on that is no way to read it."""
    first = await owning(keeper, terms(), "SELECT 1")
    assert gone(await keeper.remove([first]))
    second = await owning(
        keeper, terms("drop"), f"CREATE VIEW spy_{{n}} AS SELECT * FROM t_{first.number}; GRANT SELECT ON spy_{{n}} TO PUBLIC"
    )
    third = await owning(
        keeper, terms(), f"CREATE VIEW spy_{{n}} AS SELECT * FROM t_{first.number}; GRANT SELECT ON spy_{{n}} TO PUBLIC"
    )
    said = await keeper.remove([second, third])
    assert [error is None for error in said["release"]] == [True, False]
    bystander, password = await keeper.create()
    wire = await keeper.session(bystander.name, password)
    for user in (second, third):
        with pytest.raises(Exception, match=r"permission denied|does not exist"):
            await wire.fetchval(f"SELECT count(*) FROM spy_{user.number}")


BITE = (
    "CREATE TYPE evil_{n} AS ENUM ('a'); CREATE FUNCTION ev_{n}(evil_{n}) RETURNS int LANGUAGE plpgsql AS"
    " 'BEGIN RAISE EXCEPTION ''acting as %'', current_user; END'; CREATE CAST (evil_{n} AS int) WITH FUNCTION ev_{n} AS IMPLICIT;"
)
TIE = "CREATE TABLE fk_{n} (e evil_{n} REFERENCES bait_{n})"


async def lured(scene: Any, of: Terms, lend: str) -> tuple[Any, Any]:
    """A user whose table awaits foreign keys of others, and the session of another one that has what it takes to abuse one."""
    user = await owning(scene, of, f"CREATE TABLE bait_{{n}} (id int PRIMARY KEY); INSERT INTO bait_{{n}} VALUES (1); {lend}")
    other, password = await scene.create()
    wire = await scene.session(other.name, password)
    await wire.execute(BITE.replace("{n}", f"{user.number}"))
    return user, wire


LENDS = {
    "everybody": "GRANT REFERENCES, TRIGGER, SELECT ON bait_{n} TO PUBLIC",
    "by column": "GRANT REFERENCES (id), SELECT ON bait_{n} TO PUBLIC",
    "passed on": "GRANT REFERENCES ON bait_{n} TO readers WITH GRANT OPTION; GRANT SELECT ON bait_{n} TO PUBLIC",
}


@pytest.mark.parametrize("kind", LENDS)
async def test_nobody_ties_a_foreign_key_to_what_was_left(keeper: Any, kind: str) -> None:
    """A key whose look-up would run another user's cast as the heir can't be made: the right to it went before the table did."""
    user, wire = await lured(keeper, terms(), LENDS[kind])
    assert gone(await keeper.remove([user]))
    with pytest.raises(Exception, match="permission denied for table bait"):
        await wire.execute(TIE.replace("{n}", f"{user.number}"))
    assert await wire.fetchval(f"SELECT has_table_privilege('bait_{user.number}', 'SELECT')")


async def test_foreign_key_of_another_keeps_what_it_is_tied_to(keeper: Any) -> None:
    """A table with another user's foreign key stays with its owner, so that nothing runs as the heir, until the key is dropped."""
    user, wire = await lured(keeper, terms(), LENDS["everybody"])
    await wire.execute(TIE.replace("{n}", f"{user.number}"))
    error = error_of(await keeper.remove([user]))
    assert f"ALTER TABLE public.fk_{user.number} DROP CONSTRAINT" in error.remedy[0]
    with pytest.raises(Exception, match=f"acting as {user.name}"):
        await wire.execute(f"INSERT INTO fk_{user.number} VALUES ('a')")
    for statement in error.remedy:
        await keeper.root.execute(statement)
    assert gone(await keeper.remove([user]))
    assert (await owners(keeper, user))[f"bait_{user.number}"] == KEEPER


async def test_foreign_key_of_another_is_dropped_where_the_role_says_so(keeper: Any) -> None:
    """With `owned_code = drop` the key goes if our login may drop it; where it may not, the table stays with its owner."""
    user, wire = await lured(keeper, terms("drop"), LENDS["everybody"])
    await wire.execute(TIE.replace("{n}", f"{user.number}"))
    said = await keeper.remove([user])
    kept = await keeper.root.fetchval("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confrelid = $1::text::regclass",
                                      f"bait_{user.number}")  # fmt: skip
    assert bool(kept) is keeper.place.limited
    assert gone(said) is not keeper.place.limited
    assert (await owners(keeper, user))[f"bait_{user.number}"] == (user.name if kept else KEEPER)


async def test_foreign_key_in_the_making_keeps_what_it_is_tied_to(keeper: Any) -> None:
    """An open transaction with such a key can't slip past: the table is not handed over before its end, nor after with the key."""
    user, wire = await lured(keeper, terms(), LENDS["everybody"])
    await wire.execute("BEGIN; " + TIE.replace("{n}", f"{user.number}"))
    assert f"bait_{user.number}" in str(error_of(await keeper.remove([user])))
    await wire.execute("COMMIT")
    assert f"fk_{user.number}" in str(error_of(await keeper.remove([user])))


async def test_own_foreign_key_that_may_cast_keeps_its_user(keeper: Any) -> None:
    """A key between two tables of one user casts by another user's function: it counts as code."""
    theirs = BITE
    own = "CREATE TABLE fk_{n} (e evil_{n} REFERENCES t_{n}); GRANT INSERT ON fk_{n} TO PUBLIC"
    user = await with_accomplice(keeper, terms(), theirs, own)
    assert f"fk_{user.number}" in str(error_of(await keeper.remove([user])))
    user = await with_accomplice(keeper, terms("drop"), theirs, own)
    assert gone(await keeper.remove([user]))
    assert (await owners(keeper, user))[f"fk_{user.number}"] == KEEPER


OWNS = {
    "a table": (f"CREATE TABLE shop (a int); ALTER TABLE shop OWNER TO {KEEPER}", "table public.shop"),
    "a partitioned table": (
        f"CREATE TABLE shop (a int) PARTITION BY LIST (a); ALTER TABLE shop OWNER TO {KEEPER}",
        "table public.shop",
    ),
    "a sequence": (f"CREATE SEQUENCE shop; ALTER SEQUENCE shop OWNER TO {KEEPER}", "sequence public.shop"),
    "a large object": (f"SELECT lo_create(4711); ALTER LARGE OBJECT 4711 OWNER TO {KEEPER}", "large object 4711"),
    "a schema": (f"CREATE SCHEMA shop AUTHORIZATION {KEEPER}", "schema shop"),
    "a view": (f"CREATE VIEW shop AS SELECT 1 AS a; ALTER VIEW shop OWNER TO {KEEPER}", "view public.shop"),
    "a function": (
        f"CREATE FUNCTION shop() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION shop OWNER TO {KEEPER}",
        "function public.shop()",
    ),
}


@pytest.mark.parametrize("kind", OWNS)
async def test_heir_that_owns_an_application_gets_nothing(keeper: Any, kind: str) -> None:
    """An heir that owns what no lease leaves behind has rights of its own, were it one table; the statement told finishes it."""
    statement, named = OWNS[kind]
    await keeper.root.execute(statement)
    user = await owning(keeper, terms("drop"), "SELECT 1")
    error = error_of(await keeper.remove([user]))
    assert f"ownership of {named}" in str(error)
    assert set((await owners(keeper, user)).values()) == {user.name}
    for remedy in error.remedy:
        await keeper.root.execute(remedy)
    assert gone(await keeper.remove([user]))
    left = f"left_over_{user.identity}"
    assert set((await owners(keeper, user)).values()) == {left}
    await keeper.root.execute(f"DROP OWNED BY {left}; DROP ROLE {left}")


async def test_what_users_left_does_not_spoil_the_heir(keeper: Any) -> None:
    """Data that one user left says so, below what it said before, and the next user's goes to the same heir."""
    data = "CREATE TABLE u_{n} (a serial); CREATE SEQUENCE q_{n}; SELECT lo_create(5000000 + {n}); COMMENT ON TABLE t_{n} IS 'it''s mine'"
    first, second = [await owning(keeper, terms(), data) for _ in range(2)]
    for user in (first, second):
        assert gone(await keeper.remove([user]))
        assert set((await owners(keeper, user)).values()) == {KEEPER}
    said = "SELECT obj_description($1::text::regclass, 'pg_class')"
    assert await keeper.root.fetchval(said, f"t_{first.number}") == "it's mine\nleft by a user of the broker"
    assert await keeper.root.fetchval(said, f"q_{first.number}") == "left by a user of the broker"


async def test_what_was_handed_over_is_said_once(keeper: Any) -> None:
    """A user that says itself where its data comes from, or whose hand-over broke off after that, gets nothing said twice."""
    user = await owning(keeper, terms(), "COMMENT ON TABLE t_{n} IS 'left by a user of the broker'")
    assert gone(await keeper.remove([user]))
    said = await keeper.root.fetchval("SELECT obj_description($1::text::regclass, 'pg_class')", f"t_{user.number}")
    assert said == "left by a user of the broker"


async def test_schemas_of_users_do_not_spoil_the_heir(keeper: Any) -> None:
    """A schema that one user left says so, and the next user's objects go to the same heir."""
    await keeper.root.execute("GRANT CREATE ON DATABASE app TO readers")
    try:
        first = await owning(keeper, terms(), "CREATE SCHEMA s_{n}")
        second = await owning(keeper, terms(), "SELECT 1")
        assert gone(await keeper.remove([first]))
        assert gone(await keeper.remove([second]))
        owner = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = $1::text"
        assert await keeper.root.fetchval(owner, f"s_{first.number}") == KEEPER
    finally:
        await keeper.root.execute("REVOKE CREATE ON DATABASE app FROM readers")


RIGHTS = {
    "rights on somebody's table": (f"GRANT SELECT ON secret TO {KEEPER}", "secret"),
    "rights on what will be made": (f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {KEEPER}", "default privileges"),
    "rights in another database": ("", "other"),
    "a group": (f"GRANT readers TO {KEEPER}", "readers"),
    "an attribute": (f"ALTER ROLE {KEEPER} CREATEDB", "CREATEDB"),
    "everything": (f"ALTER ROLE {KEEPER} SUPERUSER", "SUPERUSER"),
}


@pytest.mark.parametrize("kind", RIGHTS)
async def test_heir_with_rights_gets_nothing(keeper: Any, kind: str) -> None:
    """An heir with rights of its own, whom the user could not become, is refused and the right named, even for mere tables."""
    statement, named = RIGHTS[kind]
    other = await keeper.place.root("other")
    if statement:
        await keeper.root.execute(statement)
    else:
        await other.execute(f"GRANT SELECT ON goods TO {KEEPER}")
    try:
        user = await owning(keeper, terms("drop"), "CREATE VIEW x_{n} AS SELECT 1")
        error = error_of(await keeper.remove([user]))
        assert named in str(error)
        assert set((await owners(keeper, user)).values()) == {user.name}
        assert len(await owners(keeper, user)) == 2
        for remedy in error.remedy:
            await keeper.root.execute(remedy)
        assert gone(await keeper.remove([user]))
        await keeper.root.execute(f"DROP VIEW x_{user.number}; DROP TABLE t_{user.number}")
    finally:
        await other.execute(f"REVOKE ALL ON goods FROM {KEEPER}")
        await other.close()


async def test_users_can_not_spoil_the_heir_by_granting_it_rights(keeper: Any) -> None:
    """What leased users grant to the heir on their own objects holds nobody's objects up, neither theirs nor others'."""
    spoiler, password = await keeper.create()
    wire = await keeper.session(spoiler.name, password)
    await wire.execute(
        f"CREATE TABLE bait_{spoiler.number} (a int); GRANT ALL ON bait_{spoiler.number} TO {KEEPER};"
        f"GRANT SELECT (a) ON bait_{spoiler.number} TO {KEEPER};"
        f"SELECT lo_create({4_000_000 + spoiler.number}); GRANT SELECT ON LARGE OBJECT {4_000_000 + spoiler.number} TO {KEEPER};"
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {KEEPER}"
    )
    user = await owning(keeper, terms(), f"GRANT SELECT ON t_{{n}} TO {KEEPER}")
    assert gone(await keeper.remove([user]))
    assert set((await owners(keeper, user)).values()) == {KEEPER}


async def test_dropping_code_harms_nobody_elses(keeper: Any) -> None:
    """Code that somebody else's view stands on is not dropped: its user stays, and the view goes on answering."""
    user = await owning(keeper, terms("drop"), "CREATE VIEW x_{n} AS SELECT 1 AS a; GRANT SELECT ON x_{n} TO PUBLIC")
    other, password = await keeper.create()
    wire = await keeper.session(other.name, password)
    await wire.execute(f"CREATE VIEW y_{user.number} AS SELECT * FROM x_{user.number}")
    error = error_of(await keeper.remove([user]))
    assert f"x_{user.number}" in str(error)
    assert f"DROP VIEW public.x_{user.number}" in error.remedy[0]
    assert await wire.fetchval(f"SELECT a FROM y_{user.number}") == 1
    await wire.execute(f"DROP VIEW y_{user.number}")
    assert gone(await keeper.remove([user]))


async def test_heir_with_rights_is_doubted_when_the_role_is_tried(keeper: Any) -> None:
    """With its name, its rights and what to do, as long as users can't become it; who has no rights, or is a group of theirs, is not."""
    await keeper.root.execute(f"GRANT {KEEPER} TO limited WITH ADMIN OPTION")
    joins = Terms(options={**terms().options, "grant_roles": ["readers", KEEPER]})
    for of in (terms(), joins):
        assert (await keeper.engine.rehearse(of)).warnings == []
    await keeper.root.execute(f"GRANT SELECT ON secret TO {KEEPER}; ALTER ROLE {KEEPER} CREATEDB")
    [warning] = (await keeper.engine.rehearse(terms())).warnings
    for word in (
        f"could not act as {KEEPER}",
        "CREATEDB",
        "rights on table public.secret",
        f"join {KEEPER} (grant_roles)",
        "stays",
    ):
        assert word in warning
    assert (await keeper.engine.rehearse(joins)).warnings == []


async def test_schema_closed_to_the_heir_is_told_when_the_role_is_tried(keeper: Any) -> None:
    """Where users may create and the heir may not, the rehearsal and the connection's check name the grant, and are content after it."""
    await keeper.root.execute(f"REVOKE CREATE ON SCHEMA public FROM {KEEPER}")
    grant = f"GRANT CREATE ON SCHEMA public TO {KEEPER}"
    made = Terms(
        creation=("CREATE ROLE \"{{name}}\" PASSWORD '{{password}}'", 'GRANT readers TO "{{name}}"'),
        options={"owned_objects": "reassign", "reassign_to": KEEPER},
    )

    async def told() -> list[list[str]]:
        warnings = [list((await keeper.engine.rehearse(of)).warnings) for of in (terms(), made)]
        lacks = await keeper.engine.preflight([terms()])
        return [*warnings, [lack.remedy for lack in lacks if lack.need == f"hand over in schema public to: {KEEPER}"]]

    if keeper.place.limited:
        first, second, lacked = await told()
        assert first == second
        assert f"{KEEPER} may not" in first[0]
        assert first[0].endswith(f"In database app: {grant}")
        assert lacked == [grant]
        await keeper.root.execute(grant)
    # A superuser's login hands anything over to anybody.
    assert await told() == [[], [], []]


@pytest.mark.parametrize("way", ["within reach", "without rights"])
async def test_schema_closed_to_the_heir_is_told_by_who_is_stuck_on_it(keeper: Any, way: str) -> None:
    """A user whose function, or collation, can't go to the heir names the very grant after which it does; a superuser needs none."""
    await keeper.root.execute(
        f'CREATE SCHEMA "o\'d ""d"; GRANT USAGE, CREATE ON SCHEMA "o\'d ""d" TO readers; GRANT {KEEPER} TO limited WITH ADMIN OPTION'
    )
    try:
        reach = way == "within reach"
        of = Terms(options={**terms().options, "grant_roles": ["readers", KEEPER]}) if reach else terms()
        code = (
            "CREATE FUNCTION {s}.f_{n}() RETURNS int LANGUAGE sql AS 'SELECT 1'"
            if reach
            else 'CREATE COLLATION {s}.o_{n} FROM "C"'
        )
        user = await owning(keeper, of, code.replace("{s}", '"o\'d ""d"'))
        said = await keeper.remove([user])
        if keeper.place.limited:
            assert error_of(said).remedy == (f'/* in database "app" */ GRANT CREATE ON SCHEMA "o\'d ""d" TO {KEEPER};',)
            await keeper.root.execute(error_of(said).remedy[0])
            said = await keeper.remove([user])
        assert gone(said)
        assert (await owners(keeper, user))[f"t_{user.number}"] == KEEPER
    finally:
        await keeper.root.execute('DROP SCHEMA "o\'d ""d" CASCADE')
