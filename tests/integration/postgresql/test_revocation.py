"""Taking users away on a real server: what they own, hold open, were granted, and how they resist."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.errors import InstructionsFailed, UserRemains
from broker.model import LeaseNumber, Terms, UserName
from broker.secret import Secret
from broker_postgresql import standbys
from broker_postgresql.late import Backend, _by_hand

ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
STAGES = ("disable", "end_sessions", "release", "drop", "prove_absent")


def terms(owned: str = "contain", **options: Any) -> Terms:
    """A role whose users read and create."""
    return Terms(options={"grant_roles": ["readers"], "owned_objects": owned, **options})


async def owning(scene: Any, of: Terms, statements: str, databases: tuple[str, ...] = ("app", "other")) -> Any:
    """A user that ran statements as itself in these databases."""
    user, password = await scene.create(of)
    for database in databases:
        wire = await scene.session(user.name, password, database)
        await wire.execute(statements.replace("{n}", f"{user.number}"))
    return user


def gone(said: dict[str, list[Exception | None]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def test_stranger_under_a_recorded_oid_keeps_its_sessions(scene: Any) -> None:
    """After a restore the server gives OIDs out again: whoever has a lease's by now is not ended in its place."""
    stranger, password = await scene.create()
    session = await scene.session(stranger.name, password)
    lost = replace(stranger, number=LeaseNumber(stranger.number + 1), name=UserName("v-lost"), marker="broker:v1:lost")
    said = await scene.remove([lost])
    assert gone(said)
    assert await session.fetchval("SELECT 1") == 1


async def test_contained_owner_keeps_everything(scene: Any) -> None:
    """By default nothing owned is destroyed: user and tables stay, and statements for each database would finish it."""
    user = await owning(scene, terms(), "CREATE TABLE kept_{n} AS SELECT 1 AS a")
    said = await scene.remove([user])
    [error] = said["release"]
    assert isinstance(error, UserRemains)
    assert len(error.remedy) == 2
    assert "REASSIGN OWNED" in error.remedy[0]
    assert f"kept_{user.number}" in error.remedy[0]
    assert await scene.exists(user.name)
    assert await scene.root.fetchval(f"SELECT a FROM kept_{user.number}") == 1
    assert not await scene.root.fetchval("SELECT rolcanlogin FROM pg_roles WHERE oid = $1", int(user.identity))


async def test_remedy_gives_nobody_the_rights_of_whoever_runs_it(scene: Any) -> None:
    """A function with its owner's rights has, once the operator ran the remedy, the rights of a role that has none."""
    code = "CREATE FUNCTION who_{n}() RETURNS text LANGUAGE sql SECURITY DEFINER RETURN current_user::text"
    user = await owning(scene, terms(), code, databases=("app",))
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    wire, keeper = await scene.place.root("app"), f"left_over_{user.identity}"
    for remedy in error.remedy:
        await wire.execute(remedy)
    assert await wire.fetchval(f"SELECT who_{user.number}()") == keeper
    await wire.execute(f"DROP OWNED BY {keeper}; DROP ROLE {keeper}")
    await wire.close()
    assert gone(await scene.remove([user]))


PLANTED = """
CREATE TABLE evidence (who text); GRANT ALL ON evidence TO PUBLIC;
CREATE FUNCTION same(oid, int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN INSERT INTO evidence VALUES (current_user); RETURN true; END';
CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = int, FUNCTION = same);
CREATE FUNCTION format(text, regclass) RETURNS text LANGUAGE plpgsql
  AS 'BEGIN INSERT INTO evidence VALUES (current_user); RETURN pg_catalog.format($1, $2); END';
CREATE FUNCTION pg_terminate_backend(int) RETURNS bool LANGUAGE plpgsql
  AS 'BEGIN INSERT INTO evidence VALUES (current_user); RETURN true; END'
"""


async def test_remedy_runs_nothing_of_the_user(scene: Any) -> None:
    """Functions and operators that fit better than the server's own, planted in `public`, are found by no statement that is told."""
    user, password = await scene.create(terms())
    wire, admin, victim = await scene.session(user.name, password), await scene.place.root("app"), await scene.place.root("app")
    await wire.execute(PLANTED)
    for start in range(0, 600, 100):
        await wire.execute(";".join(f"CREATE TABLE many_{user.number}_{i} (a int)" for i in range(start, start + 100)))
    late = Backend(
        pid=victim.get_server_pid(), oid=10, login="root", application=await victim.fetchval("SHOW application_name")
    )
    for told, ended in ((_by_hand(late), victim), (standbys._BY_HAND.format(place="a", oid=user.identity), wire)):
        await admin.execute(told)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await ended.fetchval("SELECT 1")
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert len(error.remedy) > 2
    for remedy in error.remedy:
        await admin.execute(remedy)
    assert await admin.fetch("SELECT who FROM public.evidence") == []
    left = f"left_over_{user.identity}"
    await admin.execute(f"DROP OWNED BY {left} CASCADE; DROP ROLE {left}")
    await admin.close()
    assert gone(await scene.remove([user]))


async def test_remedy_finishes_a_contained_user(scene: Any) -> None:
    """Once the operator has run the remedy of each database, the same stages end well."""
    user = await owning(scene, terms(), "CREATE TABLE odd_{n} (a int); COMMENT ON TABLE odd_{n} IS '*/'")
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    for remedy in error.remedy:
        wire = await scene.place.root(remedy.split('"')[1])
        await wire.execute(remedy)
        await wire.close()
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        await wire.execute(f"DROP TABLE odd_{user.number}")
        await wire.close()


async def test_reassigned_objects_belong_to_the_heir(scene: Any) -> None:
    """With `reassign` tables in every database and large objects go to the heir, and the user is gone."""
    user = await owning(
        scene,
        terms("reassign", reassign_to="heir"),
        "CREATE TABLE left_{n} AS SELECT 1 AS a; CREATE SEQUENCE counter_{n}; SELECT lo_create(1000000 + {n});"
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readers",
    )
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = $1::text"
        assert await wire.fetchval(owner, f"left_{user.number}") == "heir"
        assert await wire.fetchval(owner, f"counter_{user.number}") == "heir"
        large = "SELECT lomowner::regrole::text FROM pg_largeobject_metadata WHERE oid = $1"
        assert await wire.fetchval(large, 1_000_000 + user.number) == "heir"
        await wire.execute(f"DROP TABLE left_{user.number}; DROP SEQUENCE counter_{user.number}")
        await wire.close()


async def test_dropped_objects_are_gone(scene: Any) -> None:
    """With `drop` what a user owned in any database goes with it; others' objects stay."""
    user = await owning(scene, terms("drop"), "CREATE TABLE doomed_{n} (a int); SELECT lo_create(2000000 + {n})")
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        assert not await wire.fetchval("SELECT 1 FROM pg_class WHERE relname = $1::text", f"doomed_{user.number}")
        assert not await wire.fetchval("SELECT 1 FROM pg_largeobject_metadata WHERE oid = $1", 2_000_000 + user.number)
        assert await wire.fetchval("SELECT count(*) FROM goods") == 1
        await wire.close()


async def test_code_is_not_handed_to_more_rights(scene: Any) -> None:
    """A view of a user that is no member of the heir is not handed over, since it would read with the heir's rights."""
    user = await owning(scene, terms("reassign", reassign_to="heir"), "CREATE VIEW spy_{n} AS SELECT 1", ("app",))
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert f"spy_{user.number}" in str(error)
    assert await scene.root.fetchval("SELECT relowner FROM pg_class WHERE relname = $1::text", f"spy_{user.number}") == int(
        user.identity
    )


async def test_member_of_the_heir_hands_its_code_over(scene: Any) -> None:
    """A user that could act as the heir anyway leaves it its views too."""
    await scene.root.execute("GRANT readers TO limited" + (" WITH INHERIT TRUE, SET TRUE" if scene.place.new else ""))
    try:
        user = await owning(
            scene, terms("reassign", reassign_to="readers"), "CREATE VIEW own_{n} AS SELECT name FROM goods", ("app",)
        )
        assert gone(await scene.remove([user]))
        assert not await scene.exists(user.name)
        await scene.root.execute(f"DROP VIEW own_{user.number}")
    finally:
        undo = "GRANT readers TO limited WITH INHERIT FALSE, SET FALSE" if scene.place.new else "REVOKE readers FROM limited"
        await scene.root.execute(undo)


async def test_missing_heir_is_named(scene: Any) -> None:
    """Where the heir does not exist the user stays, and the statement that makes the heir is the remedy."""
    user = await owning(scene, terms("reassign", reassign_to="no'body"), "CREATE TABLE orphan_{n} ()", ("app",))
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    assert error.remedy == ('CREATE ROLE "no\'body" NOLOGIN',)


async def test_default_privileges_alone_keep_nobody(scene: Any) -> None:
    """A user that owns nothing but its default privileges is removed, also when objects are to be kept."""
    user = await owning(scene, terms(), "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readers")
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)


async def test_grants_of_the_own_login_are_revoked(scene: Any) -> None:
    """What the broker's own login granted to a user, in any database, does not keep it."""
    user, _ = await scene.create()
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        await wire.execute(f'GRANT SELECT ON goods TO limited WITH GRANT OPTION; GRANT USAGE ON SCHEMA public TO "{user.name}"')
        if scene.place.limited:
            await wire.execute("SET ROLE limited")
        await wire.execute(f'GRANT SELECT ON goods TO "{user.name}"')
        await wire.execute(f'RESET ROLE; REVOKE USAGE ON SCHEMA public FROM "{user.name}"')
        await wire.close()
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)


async def test_grants_of_others_are_reported(scene: Any) -> None:
    """What another role granted and our login can't revoke leaves the user, without login, with the statement to run."""
    user, _ = await scene.create()
    await scene.root.execute(f'GRANT SELECT ON goods TO "{user.name}"')
    said = await scene.remove([user])
    if not scene.place.limited:
        assert gone(said)
        return
    [error] = said["release"]
    assert isinstance(error, UserRemains)
    assert "table goods" in error.remedy[0] or "table public.goods" in error.remedy[0]
    await scene.root.execute(error.remedy[0])
    assert gone(await scene.remove([user]))


async def test_memberships_a_user_granted_go_with_it(scene: Any) -> None:
    """A membership that a user passed on is revoked, and none is left without its grantor."""
    user, password = await scene.create()
    other, _ = await scene.create()
    await scene.root.execute(f'CREATE ROLE passed_on; GRANT passed_on TO "{user.name}" WITH ADMIN OPTION')
    wire = await scene.session(user.name, password)
    await wire.execute(f'GRANT passed_on TO "{other.name}"')
    said = await scene.remove([user])
    dangling = "SELECT count(*) FROM pg_auth_members m WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = m.grantor)"
    assert not await scene.root.fetchval(dangling)
    assert gone(said)
    await scene.root.execute("DROP ROLE passed_on")


async def test_session_under_another_role_is_ended(scene: Any) -> None:
    """A session that did SET ROLE, in another database, counts as the user's and is ended; the group's own goes on."""
    user, password = await scene.create()
    wire = await scene.session(user.name, password, "other")
    await wire.execute("SET ROLE readers")
    bystander, word = await scene.create()
    kept = await scene.session(bystander.name, word)
    assert gone(await scene.remove([user]))
    with pytest.raises(Exception, match="clos"):
        await wire.execute("SELECT * FROM goods")
    assert await kept.fetchval("SELECT 1") == 1


async def test_user_that_blocks_its_role_is_disabled(scene: Any) -> None:
    """A user that holds its own role's row locked loses its sessions, and its login all the same; others wait for nothing."""
    user, password = await scene.create()
    others = [(await scene.create())[0] for _ in range(3)]
    wire = await scene.session(user.name, password)
    await wire.execute(f"BEGIN; ALTER ROLE \"{user.name}\" PASSWORD 'x'")
    said = await scene.remove([user, *others])
    assert gone(said)
    assert not await scene.exists(user.name)


async def test_user_in_its_grace_that_blocks_its_role_harms_no_other(scene: Any) -> None:
    """Its own sessions end, since they keep its login from being turned off. Those of the others go on, and their logins are off."""
    made = [await scene.create() for _ in range(4)]
    wires = [await scene.session(user.name, password) for user, password in made]
    await wires[1].execute(f"BEGIN; ALTER ROLE \"{made[1][0].name}\" PASSWORD 'x'")
    outcomes = await scene.engine.disable([replace(user, spared=True) for user, _ in made])
    assert [outcome.error for outcome in outcomes] == [None] * 4
    for position, ((user, _), wire) in enumerate(zip(made, wires, strict=True)):
        assert not await scene.root.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", user.name)
        if position == 1:
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await wire.fetchval("SELECT 1")
        else:
            assert await wire.fetchval("SELECT 1") == 1
    assert gone(await scene.remove([user for user, _ in made]))


async def test_prepared_transaction_is_rolled_back(scene: Any) -> None:
    """A transaction that a user prepared in another database is rolled back, and its work with it."""
    user, password = await scene.create(terms("contain"))
    wire = await scene.session(user.name, password, "other")
    await wire.execute(f"BEGIN; CREATE TABLE pending_{user.number} (); PREPARE TRANSACTION 'it''s {user.number}'")
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)
    assert not await scene.root.fetchval("SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'it''s%'")


async def test_open_lock_on_an_object_is_told(scene: Any) -> None:
    """Where somebody uses a table that is to be dropped, the user remains for now; afterwards it goes."""
    user = await owning(scene, terms("drop"), "CREATE TABLE busy_{n} (a int)", ("app",))
    reader = await scene.place.root()
    await reader.execute(f"BEGIN; SELECT * FROM busy_{user.number}")
    [error] = (await scene.remove([user]))["release"]
    assert isinstance(error, UserRemains)
    await reader.execute("ROLLBACK")
    await reader.close()
    assert gone(await scene.remove([user]))


async def test_own_revocation_statements_run_first(scene: Any) -> None:
    """A role's revocation statements run, filled in, and what they leave is done by the engine."""
    table = f"trace_{scene.origin.boot}"
    await scene.root.execute(f"CREATE TABLE {table} (name text); GRANT INSERT ON {table} TO limited")
    of = replace(terms(), revocation=(f"INSERT INTO public.{table} VALUES ('{{{{name}}}}')",))
    user, _ = await scene.create(of)
    assert gone(await scene.remove([user]))
    assert await scene.root.fetchval(f"SELECT name FROM {table}") == user.name
    assert not await scene.exists(user.name)
    await scene.root.execute(f"DROP TABLE {table}")


async def test_revocation_statements_may_drop_the_user(scene: Any) -> None:
    """Statements written for Vault that drop the user themselves are fine."""
    user, _ = await scene.create(replace(terms(), revocation=('DROP ROLE IF EXISTS "{{name}}"',)))
    assert gone(await scene.remove([user]))


async def test_failing_revocation_statements_are_told(scene: Any) -> None:
    """Revocation statements that fail leave the user without login, and the others of the batch are removed."""
    bad, _ = await scene.create(replace(terms(), revocation=("SELECT 1 / 0",)))
    good, _ = await scene.create()
    said = await scene.remove([bad, good])
    assert isinstance(said["release"][0], InstructionsFailed)
    assert not await scene.exists(good.name)
    assert not await scene.root.fetchval("SELECT rolcanlogin FROM pg_roles WHERE oid = $1", int(bad.identity))


async def test_batch_with_bad_users_removes_the_others(scene: Any) -> None:
    """In a batch of 256, an owner, a grantee of somebody else and an absent user hold up nobody."""
    prepared = [user for user, _ in await scene.prepare(254, terms())]
    owner = await owning(scene, terms(), "CREATE TABLE stays_{n} ()", ("app",))
    absent = (await scene.order()).user
    users = [*prepared[:100], owner, *prepared[100:], absent]
    assert len(users) == scene.engine.traits.users_per_batch
    said = await scene.remove(users)
    assert [place for place, error in enumerate(said["drop"]) if error] == [100]
    left = await scene.root.fetch("SELECT rolname FROM pg_roles WHERE rolname = ANY ($1::text[])", [u.name for u in users])
    assert [row[0] for row in left] == [owner.name]


async def test_renamed_user_is_found_by_its_oid(scene: Any) -> None:
    """A user that somebody renamed is removed under its new name."""
    user, _ = await scene.create()
    await scene.root.execute(f'ALTER ROLE "{user.name}" RENAME TO "v-renamed-{user.number}"')
    assert gone(await scene.remove([user]))
    assert not await scene.exists(f"v-renamed-{user.number}")


async def test_remade_role_of_the_name_is_left_alone(scene: Any) -> None:
    """After its user is gone, a role that somebody makes under the same name is neither enabled nor disabled nor dropped."""
    user, _ = await scene.create()
    assert gone(await scene.remove([user]))
    await scene.add_stranger(user.name, Secret("own"))
    assert gone(await scene.remove([user]))
    wire = await scene.session(user.name, Secret("own"))
    assert await wire.fetchval("SELECT 1") == 1


async def test_session_of_a_dropped_user_is_seen(scene: Any) -> None:
    """Absence is not proved while a session of the dropped user lives; it is ended where the login may."""
    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    await scene.root.execute(f'DROP ROLE "{user.name}"')
    [outcome] = await scene.engine.prove_absent([user])
    if scene.place.limited:
        assert isinstance(outcome.error, UserRemains)
        assert outcome.error.remedy == ('GRANT pg_signal_backend TO "limited"',)
        assert await wire.fetchval("SELECT 1") == 1
    else:
        assert outcome.error is None
        assert not await scene.root.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usesysid = $1", int(user.identity))


async def test_users_of_one_batch_may_want_different_ends(scene: Any) -> None:
    """Contained, dropped and reassigned owners in one batch each get what their own terms say."""
    kept = await owning(scene, terms(), "CREATE TABLE k_{n} ()")
    dropped = await owning(scene, terms("drop"), "CREATE TABLE d_{n} ()")
    given = await owning(scene, terms("reassign", reassign_to="heir"), "CREATE TABLE r_{n} ()")
    said = await scene.remove([kept, dropped, given])
    assert [error is None for error in said["drop"]] == [False, True, True]
    tables = {row[0] for row in await scene.root.fetch("SELECT relname::text FROM pg_class WHERE relname ~ '^[kdr]_[0-9]+$'")}
    assert {f"k_{kept.number}", f"r_{given.number}"} <= tables
    assert f"d_{dropped.number}" not in tables
    for database in ("app", "other"):
        wire = await scene.place.root(database)
        await wire.execute(f"DROP TABLE r_{given.number}")
        await wire.close()


async def test_many_sessions_end_together(scene: Any) -> None:
    """Users with several sessions each, in two databases, lose them all in one call."""
    made = [await scene.create() for _ in range(4)]
    wires = [await scene.session(user.name, word, name) for user, word in made for name in ("app", "other") for _ in range(3)]
    users = [user for user, _ in made]
    assert [outcome.error for outcome in await scene.engine.disable(users)] == [None] * 4
    assert [outcome.error for outcome in await scene.engine.end_sessions(users)] == [None] * 4
    answers = await asyncio.gather(*(wire.execute("SELECT 1") for wire in wires), return_exceptions=True)
    assert all(isinstance(answer, Exception) for answer in answers)


async def test_database_that_lets_nobody_in_is_told(scene: Any) -> None:
    """A user with rights in a database that our login may not enter remains, with the remedy; the others are removed."""
    user, _ = await scene.create()
    other = await owning(scene, terms("drop"), "CREATE TABLE mine_{n} ()", ("app",))
    outside = await scene.place.root("other")
    await outside.execute(f'GRANT SELECT ON goods TO "{user.name}"; REVOKE CONNECT ON DATABASE other FROM PUBLIC')
    try:
        said = await scene.remove([user, other])
        if scene.place.limited:
            assert isinstance(said["release"][0], UserRemains)
            assert said["release"][0].remedy[0] == 'GRANT CONNECT ON DATABASE "other" TO "limited"'
            assert said["release"][1] is None
        else:
            assert gone(said)
        assert not await scene.exists(other.name)
    finally:
        await outside.execute("GRANT CONNECT ON DATABASE other TO PUBLIC")
        await outside.close()
