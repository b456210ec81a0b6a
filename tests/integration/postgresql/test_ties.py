"""Code that a user tied to others' tables runs in nobody's session once the user is gone, whatever was told or done about its objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

GROUP = {"grant_roles": ["readers"]}
TERMS = {
    "contain": Terms(options=GROUP),
    "drop": Terms(options={**GROUP, "owned_objects": "drop"}),
    "hand over data": Terms(options={**GROUP, "owned_objects": "reassign", "reassign_to": "heir"}),
    "hand over without code": Terms(
        options={**GROUP, "owned_objects": "reassign", "reassign_to": "heir", "owned_code": "drop"}
    ),
}
EVIL = (
    "CREATE FUNCTION t_{n}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " INSERT INTO public.loot VALUES (current_user); RETURN NEW; END $$;"
    "CREATE FUNCTION f_{n}(a int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN a; END $$;"
    "CREATE OPERATOR ## (RIGHTARG = int, FUNCTION = f_{n});"
)
TRIGGERS = {
    "its function": 'CREATE TRIGGER "o\'d ""x" BEFORE INSERT ON "App\'s" FOR EACH ROW EXECUTE FUNCTION t_{n}()',
    "its condition": 'CREATE TRIGGER x BEFORE UPDATE ON "App\'s" FOR EACH ROW WHEN (f_{n}(NEW.a) > 0)'
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "an operator": 'CREATE TRIGGER x BEFORE UPDATE ON "App\'s" FOR EACH ROW WHEN ((## NEW.a) > 0)'
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
}
WITHOUT_FUNCTIONS = {
    "an operator": "CREATE OPERATOR ## (RIGHTARG = int, FUNCTION = int4abs);"
    'CREATE TRIGGER x BEFORE UPDATE ON "App\'s" FOR EACH ROW WHEN ((## NEW.a) > 0)',
    "a domain": "CREATE DOMAIN d_{n} AS int CHECK (VALUE > 0);"
    'CREATE TRIGGER x BEFORE UPDATE ON "App\'s" FOR EACH ROW WHEN (NEW.a::d_{n} > 0)',
    "a view": "CREATE VIEW v_{n} AS SELECT 1 AS a;"
    'CREATE TRIGGER x BEFORE UPDATE ON "App\'s" FOR EACH ROW WHEN (ROW(NEW.a)::v_{n} IS NOT NULL)',
}
AS_OWNER = {
    "rule": 'CREATE RULE x AS ON INSERT TO "App\'s" WHERE f_{n}(NEW.a) > 0 DO ALSO NOTHING',
    "policy": 'CREATE POLICY x ON "App\'s" USING (f_{n}(a) > 0)',
    "default": 'ALTER TABLE "App\'s" ALTER a SET DEFAULT f_{n}(1)',
    "check": 'ALTER TABLE "App\'s" ADD CONSTRAINT x CHECK (f_{n}(a) > 0)',
    "exclusion": 'ALTER TABLE "App\'s" ADD CONSTRAINT x EXCLUDE ((f_{n}(a)) WITH =)',
    "index": 'CREATE INDEX x ON "App\'s" (f_{n}(a))',
    "index by way of another function": "CREATE FUNCTION theirs_{n}(a int) RETURNS int IMMUTABLE LANGUAGE sql RETURN f_{n}(a);"
    'CREATE INDEX x ON "App\'s" (theirs_{n}(a))',
    "statistics": 'CREATE STATISTICS x ON (f_{n}(a)), a FROM "App\'s"',
    "generated column": 'ALTER TABLE "App\'s" ADD g int GENERATED ALWAYS AS (f_{n}(a)) STORED',
    "domain": 'CREATE DOMAIN theirs_{n} AS int CHECK (f_{n}(VALUE) > 0); ALTER TABLE "App\'s" ADD d theirs_{n}',
}
TABLE = (
    'CREATE TABLE "App\'s" (a int); CREATE TABLE loot (who text); GRANT INSERT ON loot TO PUBLIC;'
    'GRANT INSERT, UPDATE, TRIGGER ON "App\'s" TO readers'
)


@pytest.fixture(params=["app", "other"])
async def application(scene: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A superuser's session beside a table of the application, on which users may put triggers, in the home database or another one."""
    root = await scene.place.root(request.param)
    await root.execute(TABLE)
    yield root
    await root.execute('DROP TABLE "App\'s", loot CASCADE')
    await root.close()


async def tying(scene: Any, root: Any, of: Terms, statements: str, role: str = "") -> Any:
    """A user that made code, and then statements with it as itself or as a role."""
    user, password = await scene.create(of)
    wire = await scene.session(user.name, password, await root.fetchval("SELECT current_database()"))
    await wire.execute(EVIL.replace("{n}", f"{user.number}"))
    if role:
        await wire.execute(f"SET ROLE {role}")
    await wire.execute(statements.replace("{n}", f"{user.number}"))
    return user


def remedy_of(said: dict[str, list[Any]]) -> tuple[str, ...]:
    """What was told for the only user; nothing where it is gone."""
    for [error] in said.values():
        if error:
            assert isinstance(error, UserRemains), error
            return error.remedy
    return ()


async def told(scene: Any, root: Any, user: Any) -> list[str]:
    """Revokes the user, does word for word what is told until it is gone, and answers that."""
    done: list[str] = []
    while remedy := remedy_of(await scene.remove([user])):
        assert len(done) < len(AS_OWNER), done
        for statement in remedy:
            await root.execute(statement)
            done.append(statement)
    assert not await scene.exists(user.name)
    left = f"left_over_{user.identity}"
    if await scene.exists(left):
        await root.execute(f"DROP OWNED BY {left}; DROP ROLE {left}")
    return done


@pytest.mark.parametrize("kind", TRIGGERS)
@pytest.mark.parametrize("of", TERMS)
async def test_trigger_on_anothers_table_goes_before_its_code(scene: Any, application: Any, of: str, kind: str) -> None:
    """Neither what the broker does nor what it tells leaves a user's function behind in others' sessions, a superuser's above all."""
    user = await tying(scene, application, TERMS[of], TRIGGERS[kind])
    done = await told(scene, application, user)
    assert bool(done) is (scene.place.limited or TERMS[of] in (TERMS["contain"], TERMS["hand over data"]))
    await application.execute('INSERT INTO "App\'s" VALUES (1); UPDATE "App\'s" SET a = 2')
    assert not await application.fetchval("SELECT count(*) FROM loot")
    assert not await application.fetchval("SELECT count(*) FROM pg_trigger WHERE tgrelid = '\"App''s\"'::regclass")


@pytest.mark.parametrize("kind", WITHOUT_FUNCTIONS)
async def test_trigger_goes_also_where_its_maker_has_no_function(scene: Any, application: Any, kind: str) -> None:
    """Its condition may rest on other things of the user, which can't be dropped while it is there: without a remedy, where we may."""
    user, password = await scene.create(TERMS["drop"])
    wire = await scene.session(user.name, password, await application.fetchval("SELECT current_database()"))
    statement = f"{WITHOUT_FUNCTIONS[kind]} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    await wire.execute(statement.replace("{n}", f"{user.number}"))
    left = remedy_of(await scene.remove([user]))
    assert bool(left) is scene.place.limited
    assert bool(await application.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname = 'x'")) is scene.place.limited
    await application.execute('DROP TRIGGER IF EXISTS x ON "App\'s"')
    assert not remedy_of(await scene.remove([user]))
    assert not await scene.exists(user.name)


@pytest.mark.parametrize("kind", AS_OWNER)
async def test_what_was_made_as_the_owner_is_told_and_left(scene: Any, kind: str) -> None:
    """What only a table's owner can put there keeps the user, and is told before its code has another owner."""
    await scene.root.execute(TABLE + '; ALTER TABLE "App\'s" OWNER TO readers')
    try:
        user = await tying(scene, scene.root, TERMS["drop"], AS_OWNER[kind], "readers")
        await scene.root.execute('INSERT INTO "App\'s" VALUES (1)')
        first = remedy_of(await scene.remove([user]))
        assert not any("left_over" in statement for statement in first[:-1])
        assert "left_over" in first[-1]
        assert len(first) == 2
        for statement in first[:-1]:
            await scene.root.execute(statement)
        assert await scene.root.fetchval('SELECT count(*) FROM "App\'s"') == 1
        await scene.root.execute(f"DROP FUNCTION IF EXISTS theirs_{user.number}")
        assert not remedy_of(await scene.remove([user]))
    finally:
        await scene.root.execute('DROP TABLE IF EXISTS "App\'s", loot CASCADE')
        await scene.root.execute("DROP DOMAIN IF EXISTS " + (f"theirs_{user.number}" if kind == "domain" else "theirs_0"))


async def test_own_triggers_are_no_ties(scene: Any) -> None:
    """What a user has on its own tables goes with them, and is not told."""
    user = await tying(
        scene, scene.root, TERMS["contain"], "CREATE TABLE own_{n} (a int);"
        "CREATE TRIGGER x BEFORE UPDATE ON own_{n} FOR EACH ROW EXECUTE FUNCTION t_{n}()",
    )  # fmt: skip
    [statement] = remedy_of(await scene.remove([user]))
    assert "TRIGGER" not in statement


@pytest.mark.parametrize("shadow", ["format(text, name, regclass)", "current_database()", "set_config(text, text, boolean)"])
async def test_statement_told_for_another_database_calls_nothing_of_the_user(scene: Any, shadow: str) -> None:
    """With the user's functions before the catalogue's in the path of whoever runs it, the statement finds the catalogue's alone."""
    root = await scene.place.root("other")
    await root.execute(TABLE + "; GRANT CREATE ON DATABASE other TO readers")
    try:
        user = await tying(scene, root, TERMS["contain"], TRIGGERS["its function"])
        name = shadow.partition("(")[0]
        result = {"format": "text", "current_database": "name", "set_config": "text"}[name]
        body = "AS $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$"
        await root.execute(f"CREATE SCHEMA trap; CREATE FUNCTION trap.{shadow} RETURNS {result} LANGUAGE plpgsql {body}")
        [untie, *_] = remedy_of(await scene.remove([user]))
        await root.execute(f"SET search_path = trap, pg_catalog, public; {untie}")
        assert not await root.fetchval("SELECT count(*) FROM pg_catalog.pg_trigger WHERE tgname ~ 'o.d'")
    finally:
        await root.execute('RESET search_path; DROP SCHEMA trap CASCADE; DROP TABLE "App\'s", loot CASCADE')
        await root.execute("REVOKE CREATE ON DATABASE other FROM readers")
        await root.close()


async def test_statement_told_for_many_tables_uses_no_operator_of_the_user(scene: Any) -> None:
    """With the user's schema before the catalogue's in the path of whoever runs it, tables by the hundred go over without its operators."""
    user, password = await scene.create(TERMS["contain"])
    await scene.root.execute(f'CREATE SCHEMA trap AUTHORIZATION "{user.name}"')
    try:
        wire = await scene.session(user.name, password)
        await wire.execute(
            "DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE format('CREATE TABLE trap.t%s (a int)', i); END LOOP; END $$"
        )
        for kind in ("oid", '"char"'):
            body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'ran as %', current_user; END $$"
            await wire.execute(
                f"CREATE FUNCTION trap.f({kind}, {kind}) RETURNS bool {body};"
                f"CREATE OPERATOR trap.= (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = trap.f)"
            )
        make, move, *_ = remedy_of(await scene.remove([user]))
        await scene.root.execute(make)
        await scene.root.execute("SET search_path = trap, pg_catalog")
        await scene.root.execute(move)
        await scene.root.execute("RESET search_path")
        assert not await scene.root.fetchval(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relowner = $1::text::oid", user.identity
        )
    finally:
        await scene.root.execute(
            f'RESET search_path; DROP SCHEMA trap CASCADE; DROP ROLE IF EXISTS "left_over_{user.identity}"'
        )
