"""No code of a user's runs in a session of the broker, whose login may be a superuser, nor in that of whoever does what the broker tells.

What a user leaves is full of traps: wherever an ordinary user may put a function, there is one that counts when it is run by anybody but
the user, which no rollback undoes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from broker.engines.protocol import Extension
from broker.errors import UserRemains
from broker.model import Terms

pytestmark = pytest.mark.parametrize("place", ["superuser"], indirect=True)
ROUNDS = 2
"""How often it is revoked, and then done what is told."""
GROUP = {"grant_roles": ["readers"]}
HEIR = {**GROUP, "owned_objects": "reassign", "reassign_to": "keeper"}
WHAT_BECOMES_OF_IT = {
    "contain": GROUP,
    "drop": {**GROUP, "owned_objects": "drop"},
    "hand over data": HEIR,
    "hand over without code": {**HEIR, "owned_code": "drop"},
    "hand over all": {**GROUP, "owned_objects": "reassign", "reassign_to": "readers"},
}
RENEWAL = ("ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}'", "SELECT format('%s', count(*)) FROM pg_roles WHERE oid <> 0")
EVIL = (
    "CREATE FUNCTION f_{n}(a int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN {COUNTS} RETURN a; END $$;"
    "CREATE FUNCTION t_{n}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {COUNTS} RETURN NEW; END $$;"
    "CREATE DOMAIN d_{n} AS int CHECK (f_{n}(VALUE) > 0);"
)
COUNTS = "IF session_user <> 'USER' THEN PERFORM nextval('public.ran_{n}'); END IF;"
PARTED = "CREATE TABLE p_{n} (a int) PARTITION BY RANGE (({key})); "
BELOW = "CREATE TABLE c_{n} PARTITION OF p_{n} DEFAULT; INSERT INTO p_{n} VALUES (1);"
DETACH = "ALTER TABLE p_{n} DETACH PARTITION c_{n}"
FULL = (
    "CREATE TABLE own_{n} (a int DEFAULT f_{n}(1) CHECK (a > f_{n}(0)), b d_{n}, c int GENERATED ALWAYS AS (a + f_{n}(1)) STORED,"
    " EXCLUDE ((f_{n}(a)) WITH =)); INSERT INTO own_{n} VALUES (1, 1);"
    "CREATE INDEX i_{n} ON own_{n} ((a + f_{n}(1))) WHERE a > f_{n}(0); CREATE STATISTICS s_{n} ON (f_{n}(a)), a FROM own_{n};"
    "CREATE RULE r AS ON DELETE TO own_{n} WHERE f_{n}(OLD.a) > 0 DO ALSO NOTHING; CREATE POLICY p ON own_{n} TO readers, PUBLIC"
    " USING (f_{n}(a) > 0); ALTER TABLE own_{n} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
    "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON own_{n} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION t_{n}();"
)
NAMES = (
    "CREATE FUNCTION {in}.format(text, {type}) RETURNS text LANGUAGE plpgsql AS $$ BEGIN {COUNTS} RETURN ''; END $$;"
    "CREATE FUNCTION {in}.differs(oid, {type}) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN {COUNTS} RETURN false; END $$;"
    "CREATE OPERATOR {in}.<> (LEFTARG = oid, RIGHTARG = {type}, FUNCTION = {in}.differs);"
)
TRAPS = {
    "a partition key": (PARTED.replace("{key}", "a + f_{n}(1)") + BELOW + "ALTER TABLE c_{n} OWNER TO readers", DETACH),
    "a partition key of the group's table": (
        "SET ROLE readers; " + PARTED.replace("{key}", "a + f_{n}(1)") + "RESET ROLE; " + BELOW,
        DETACH,
    ),
    "a partition key that is the group's altogether": (
        "ALTER FUNCTION f_{n} OWNER TO readers; SET ROLE readers; "
        + PARTED.replace("{key}", "a + f_{n}(1)")
        + "RESET ROLE; "
        + BELOW,
        DETACH,
    ),
    "all that a table has": (FULL, "INSERT INTO own_{n} VALUES (2, 2)"),
    "all that the group's table has": ("SET ROLE readers; " + FULL, "INSERT INTO own_{n} VALUES (2, 2)"),
    "a child with an index": (
        (
            "CREATE TABLE own_{n} (a int); ALTER TABLE own_{n} OWNER TO readers;"
            "CREATE TABLE c_{n} (CHECK (a > f_{n}(0))) INHERITS (own_{n}); CREATE INDEX ON c_{n} ((a + f_{n}(1)))"
        ),
        "INSERT INTO c_{n} VALUES (1)",
    ),
    "views": (
        (
            "CREATE VIEW v_{n} AS SELECT f_{n}(1) AS a; CREATE TRIGGER t INSTEAD OF INSERT ON v_{n} FOR EACH ROW EXECUTE FUNCTION t_{n}();"
            "CREATE MATERIALIZED VIEW m_{n} AS SELECT f_{n}(1) AS a; CREATE INDEX ON m_{n} ((a + f_{n}(1)))"
        ),
        "REFRESH MATERIALIZED VIEW m_{n}",
    ),
    "types": (
        (
            "CREATE TYPE e_{n} AS ENUM ('x');"
            "CREATE FUNCTION of_{n}(e_{n}) RETURNS int LANGUAGE plpgsql AS $$ BEGIN {COUNTS} RETURN 1; END $$;"
            "CREATE CAST (e_{n} AS int) WITH FUNCTION of_{n}(e_{n}) AS IMPLICIT;"
            "CREATE FUNCTION apart_{n}(int, int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN {COUNTS} RETURN $1 - $2; END $$;"
            "CREATE TYPE r_{n} AS RANGE (SUBTYPE = int, SUBTYPE_DIFF = apart_{n}); CREATE TABLE own_{n} (r r_{n}, e e_{n}, d d_{n});"
            "CREATE INDEX ON own_{n} USING gist (r); CREATE AGGREGATE g_{n}(int) (SFUNC = int4pl, STYPE = int, FINALFUNC = f_{n})"
        ),
        "SELECT 'x'::e_{n} + 1",
    ),
    "names in public": (
        NAMES.replace("{in}", "public").replace("{type}", "int") + "CREATE VIEW public.pg_roles AS SELECT f_{n}(1) AS oid",
        "SELECT format('%s', 1)",
    ),
    "names in the administrator's own schema": (
        "CREATE SCHEMA postgres; GRANT USAGE ON SCHEMA postgres TO PUBLIC; CREATE TABLE own_{n} (a int);"
        + NAMES.replace("{in}", "postgres").replace("{type}", "bigint"),
        "SELECT format('%s', 1::bigint)",
    ),
    "a prepared transaction": (
        "BEGIN; CREATE TABLE own_{n} (a int DEFAULT f_{n}(1)); PREPARE TRANSACTION 'x_{n}'",
        "COMMIT PREPARED 'x_{n}'",
        "INSERT INTO own_{n} DEFAULT VALUES",
    ),
}
"""What a user makes, and what a superuser had better not run: by that the trap snaps."""


@pytest.fixture
async def trapped(scene: Any) -> AsyncIterator[Any]:
    """A scene with an heir without rights, in which users may make schemas."""
    grants = "GRANT SELECT ON goods TO readers; GRANT CREATE ON SCHEMA public TO readers"
    await scene.root.execute(
        "CREATE ROLE keeper; GRANT CREATE ON SCHEMA public TO keeper; GRANT CREATE ON DATABASE app TO readers"
    )
    yield scene
    await scene.root.execute("SET search_path = pg_catalog, public")
    left = await names(scene, "pg_roles", "rolname", "left_over_%")
    owners, made = ", ".join(["keeper", *left]), ", ".join(await names(scene, "pg_class", "relname", "ran_%"))
    await scene.root.execute(f"DROP OWNED BY readers, {owners} CASCADE; DROP ROLE {owners}; DROP SEQUENCE {made}; {grants}")


async def names(scene: Any, catalog: str, column: str, like: str) -> list[str]:
    """Names in a catalogue."""
    return [row[0] for row in await scene.root.fetch(f"SELECT {column}::text FROM {catalog} WHERE {column} LIKE $1", like)]


async def plant(scene: Any, of: Terms) -> dict[str, Any]:
    """Users, by the kind of their traps, that made these."""
    users = {}
    for kind, (trap, *_) in TRAPS.items():
        user, password = await scene.create(of)
        await scene.root.execute(
            f"CREATE SEQUENCE public.ran_{user.number}; GRANT ALL ON SEQUENCE public.ran_{user.number} TO PUBLIC"
        )
        wire = await scene.session(user.name, password)
        for statements in (EVIL, trap):
            await wire.execute(written(statements, user))
        users[kind] = user
    return users


def written(statements: str, user: Any) -> str:
    """The statements of a user."""
    return statements.replace("{COUNTS}", COUNTS).replace("{n}", f"{user.number}").replace("USER", user.name)


async def snapped(scene: Any, users: dict[str, Any]) -> set[str]:
    """Whose traps have snapped."""
    ran = {kind: await scene.root.fetchval(f"SELECT is_called FROM public.ran_{user.number}") for kind, user in users.items()}
    return {kind for kind, called in ran.items() if called}


@pytest.mark.parametrize("what", WHAT_BECOMES_OF_IT)
async def test_no_trap_snaps(trapped: Any, what: str) -> None:
    """Whatever the role says of its users' objects: not when they are looked at, renewed and revoked, nor by any remedy that is told."""
    terms = Terms(options=WHAT_BECOMES_OF_IT[what], renewal=RENEWAL)
    users = await plant(trapped, terms)
    engine, everybody = trapped.engine, list(users.values())
    renewed = await engine.extend([Extension(user=user, lifetime_ms=3_600_000) for user in everybody])
    assert not any(outcome.error for outcome in renewed)
    await engine.preflight([terms])
    await engine.rehearse(terms)
    await engine.inspect()
    await engine.sweep()
    assert not await snapped(trapped, users)
    administrator = await trapped.place.root()
    for _ in range(ROUNDS):
        said = await trapped.remove(everybody)
        assert not await snapped(trapped, users)
        for error in {error for errors in said.values() for error in errors if isinstance(error, UserRemains)}:
            for remedy in error.remedy:
                # Some fail where others have to come first, as for whoever reads them.
                with contextlib.suppress(asyncpg.PostgresError):
                    await administrator.execute(remedy)
        assert not await snapped(trapped, users)
    await administrator.close()


async def test_every_trap_can_snap(trapped: Any) -> None:
    """Each of them does what it is there for when a superuser is careless, so that none of the above is true of itself."""
    users = await plant(trapped, Terms(options=GROUP))
    administrator = await trapped.place.root()
    for kind, (_, *springs) in TRAPS.items():
        for spring in springs:
            await administrator.execute(written(spring, users[kind]))
    await administrator.close()
    assert await snapped(trapped, users) == TRAPS.keys()
