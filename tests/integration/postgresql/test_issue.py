"""Making users on a real server: what they can do, what leaks, and what a role's statements can't do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.engines.protocol import Password
from broker.errors import EngineError, InstructionsFailed, UserMissing, UserNameTaken
from broker.model import Terms
from broker.secret import Secret
from broker_postgresql import schemas

ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"


async def test_user_reads_through_its_group(scene: Any) -> None:
    """A user made without statements logs in with its password and reads what its group may."""
    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    assert await wire.fetchval("SELECT name FROM goods") == "lamp"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await wire.execute("DELETE FROM goods")


async def test_only_the_verifier_is_kept(scene: Any) -> None:
    """The server stores just the verifier that was sent, with the iterations of the connection."""
    order = await scene.order()
    await scene.engine.create(order)
    kept = await scene.root.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = $1::text", order.user.name)
    assert kept == order.password.verifier.reveal()
    assert kept.startswith("SCRAM-SHA-256$16:")


async def test_malformed_verifier_is_not_sent(scene: Any) -> None:
    """What the server would take for a plain password never reaches it."""
    order = await scene.order()
    bad = Password(text=order.password.text, verifier=Secret(order.password.verifier.reveal()[:-1]))
    with pytest.raises(EngineError, match="verifier"):
        await scene.engine.create(replace(order, password=bad))
    assert not await scene.exists(order.user.name)


async def test_plain_password_can_be_asked_for(scene: Any) -> None:
    """With password_authentication = password the password itself stands in the statements, and works."""
    engine = await scene.another_engine(password_authentication="password")
    order = await scene.order(Terms(creation=(ROLE,)))
    order = replace(order, password=await engine.new_password())
    assert not order.password.verifier
    await engine.create(order)
    await scene.session(order.user.name, order.password.text)


async def test_login_ends_by_the_servers_clock(scene: Any) -> None:
    """The expiry stands the lease's lifetime and five seconds ahead on the server's clock, whatever the statements said."""
    user, _ = await scene.create(Terms(creation=(ROLE.replace("{{expiration}}", "infinity"),)), lifetime_ms=60_000)
    left = await scene.root.fetchval(
        "SELECT extract(epoch FROM rolvaliduntil - clock_timestamp()) FROM pg_roles WHERE rolname = $1::text", user.name
    )
    assert 55 < left <= 65


async def test_options_become_the_roles(scene: Any) -> None:
    """Connection limit and settings of the role's options are those of its users, and odd values are quoted."""
    options = {
        "grant_roles": ["readers"],
        "connection_limit": 3,
        "settings": {
            "statement_timeout": "30s",
            "search_path": '"$user", odd, public',
            "jit": False,
            "application_name": "it's a\\b",
        },
    }
    user, password = await scene.create(Terms(options=options))
    assert await scene.root.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1::text", user.name) == 3
    wire = await scene.session(user.name, password)
    assert await wire.fetchval("SHOW statement_timeout") == "30s"
    assert await wire.fetchval("SHOW search_path") == '"$user", odd, public'
    assert await wire.fetchval("SELECT current_setting('application_name')") == "it's a\\b"
    assert await wire.fetchval("SHOW jit") == "off"


async def test_user_carries_its_marker(scene: Any) -> None:
    """The role's comment is the marker that the lease was given."""
    user, _ = await scene.create()
    comment = "SELECT shobj_description($1::oid, 'pg_authid')"
    assert await scene.root.fetchval(comment, int(user.identity)) == user.marker


@pytest.mark.parametrize(
    "smuggled",
    [
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "SAVEPOINT s",
        "COMMIT AND CHAIN",
        "DO $$ BEGIN COMMIT; END $$",
        "SET ROLE readers",
        'DROP ROLE "{{name}}"',
        "CREATE DATABASE smuggled",
        "SELECT broken(",
        'ALTER ROLE "{{name}}" RENAME TO "v-other"',
    ],
)
async def test_statements_cannot_leave_their_frame(scene: Any, smuggled: str) -> None:
    """Statements that end the transaction, keep another role, or leave no user of the name fail, and nothing is left."""
    if smuggled == "SET ROLE readers" and scene.place.limited:
        smuggled = "SET ROLE heir"
    order = await scene.order(Terms(creation=(ROLE, smuggled)))
    with pytest.raises(InstructionsFailed):
        await scene.engine.create(order)
    assert not await scene.exists(order.user.name)
    assert not await scene.exists("v-other")
    await scene.create()


@pytest.mark.parametrize("command", ["COMMIT", "ROLLBACK", "SAVEPOINT one", "BEGIN"])
async def test_transaction_commands_are_refused_in_plain_words(scene: Any, command: str) -> None:
    """The server speaks of an EXECUTE that nobody wrote."""
    with pytest.raises(InstructionsFailed, match=r"statement 2, .*: statements may not begin, end or divide transactions"):
        await scene.engine.rehearse(Terms(creation=(ROLE, command)))


async def test_superuser_is_not_made(scene: Any) -> None:
    """Statements that make a superuser, whom nothing could contain, are undone."""
    order = await scene.order(Terms(creation=(f"{ROLE} SUPERUSER",)))
    with pytest.raises(InstructionsFailed):
        await scene.engine.create(order)
    assert not await scene.exists(order.user.name)


async def test_nobody_joins_a_superuser(scene: Any) -> None:
    """A role that names a superuser among its groups gets no user: whoever could become one can't be contained."""
    await scene.root.execute("CREATE ROLE chief SUPERUSER NOLOGIN; CREATE ROLE deputies; GRANT chief TO deputies")
    if scene.place.limited:
        await scene.root.execute(f'GRANT deputies TO "{scene.place.login}" WITH ADMIN OPTION')
    try:
        for terms in (
            Terms(options={"grant_roles": ["chief"]}),
            Terms(creation=(ROLE,), options={"grant_roles": ["chief"]}),
            Terms(options={"grant_roles": ["deputies"]}),
        ):
            order = await scene.order(terms)
            with pytest.raises(InstructionsFailed):
                await scene.engine.create(order)
            assert not await scene.exists(order.user.name)
    finally:
        await scene.root.execute("DROP ROLE chief, deputies")


async def test_making_users_reads_no_whole_list_of_roles(scene: Any) -> None:
    """A cluster may have very many: what one more user costs does not grow with them."""
    others, users, by_group = 300, 8, Terms(options={"grant_roles": ["readers"]})
    engine = await scene.another_engine(max_open_connections=1)
    # Once planned among few roles, and then used among many.
    await engine.create(await scene.order(by_group))
    await engine.create(await scene.order(by_group))
    names = ", ".join(f"crowd_{number}" for number in range(others))
    await scene.root.execute(";".join(f"CREATE ROLE {name} IN ROLE readers" for name in names.split(", ")))
    try:
        before = await _roles_read(engine)
        for _ in range(users):
            await engine.create(await scene.order(by_group))
        assert await _roles_read(engine) - before < others
    finally:
        await scene.root.execute(f"DROP ROLE {names}")


async def _roles_read(engine: Any) -> int:
    """Rows of the lists of roles and of memberships that were read one after the other, by whomever."""
    async with engine._lanes.general.session() as session:
        await session.rows("SELECT pg_stat_force_next_flush()")
        [[rows]] = await session.rows(
            "SELECT sum(seq_tup_read)::bigint FROM pg_stat_sys_tables WHERE relname IN ('pg_authid', 'pg_auth_members')"
        )
        return int(rows)


async def test_what_statements_set_does_not_stay(scene: Any) -> None:
    """Settings and locks of one role's statements are gone for the next user of the connection."""
    engine = await scene.another_engine(max_open_connections=1)
    leaving = "SET search_path = pg_temp; SET statement_timeout = 1; SELECT pg_advisory_lock(4711); SET TimeZone = 'Asia/Tokyo'"
    order = await scene.order(Terms(creation=(ROLE, leaving.replace("statement_timeout = 1;", "statement_timeout = '7s';"))))
    await engine.create(order)
    async with engine._lanes.general.session() as session:
        shown = [row[0] for row in await session.rows("SELECT current_setting(n) FROM unnest($1::text[]) n", [
            "search_path", "statement_timeout", "TimeZone", "broker.v0",
        ])]  # fmt: skip
        assert shown == ["pg_catalog, pg_temp", "30s", "UTC", ""]
    assert not await scene.root.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711")


async def _kept(engine: Any) -> Any:
    """The functions that the engine's one connection keeps; None where it gave that up."""
    async with engine._lanes.general.session() as session:
        return session.routines


async def test_routine_is_kept_by_the_connection_alone(scene: Any) -> None:
    """It belongs to our login, whoever acted when it was made, and is gone with the connection."""
    engine = await scene.another_engine(max_open_connections=1)
    for _ in range(2):
        await engine.create(await scene.order())
        await engine.create(await scene.order(Terms(creation=(ROLE,))))
    assert len(await _kept(engine)) == 2
    async with engine._lanes.general.session() as session:
        kept = await session.rows("SELECT oid, proowner::regrole::text FROM pg_proc WHERE pronamespace = pg_my_temp_schema()")
    assert [owner for _, owner in kept] == [scene.place.login] * 2
    await engine.close()
    while await scene.root.fetch("SELECT FROM pg_proc WHERE oid = ANY($1::oid[])", [oid for oid, _ in kept]):
        await asyncio.sleep(0.01)


async def test_users_are_made_without_the_right_to_temporary_objects(scene: Any) -> None:
    """Where it was taken from everybody, as hardened databases have it, nothing is missed."""
    await scene.root.execute("REVOKE TEMPORARY ON DATABASE app FROM PUBLIC")
    try:
        engine = await scene.another_engine(max_open_connections=1)
        for _ in range(2):
            order = await scene.order(Terms(creation=(ROLE,)))
            await engine.create(order)
            await scene.session(order.user.name, order.password.text)
        assert (await _kept(engine) is None) == scene.place.limited
    finally:
        await scene.root.execute("GRANT TEMPORARY ON DATABASE app TO PUBLIC")


async def test_users_are_made_where_the_routine_was_lost(scene: Any) -> None:
    """Statements that discard what is temporary take it away; the same order and later ones are carried out all the same."""
    engine = await scene.another_engine(max_open_connections=1)
    await engine.create(await scene.order())
    async with engine._lanes.general.session() as session:
        await session.run("DISCARD TEMP")
    for terms in (None, Terms(creation=(ROLE, "DISCARD TEMP")), Terms(creation=(ROLE,))):
        order = await scene.order(terms)
        await engine.create(order)
        assert await scene.exists(order.user.name)


async def test_users_are_made_where_nobody_may_call_new_functions(scene: Any) -> None:
    """Default privileges that keep functions from everybody keep ours from the creator roles; a block does the same."""
    login = scene.place.login
    await scene.root.execute(f"ALTER DEFAULT PRIVILEGES FOR ROLE {login} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    try:
        engine = await scene.another_engine(max_open_connections=1)
        for _ in range(2):
            order = await scene.order()
            await engine.create(order)
            assert await scene.exists(order.user.name)
    finally:
        await scene.root.execute(f"ALTER DEFAULT PRIVILEGES FOR ROLE {login} GRANT EXECUTE ON FUNCTIONS TO PUBLIC")


LOOKS = "DO $$ BEGIN PERFORM 'goods'::regclass; END $$"
CALLS = "DO $$ BEGIN EXECUTE format('GRANT readers TO %I', '{{name}}'); END $$"
PLANTED = """
CREATE TABLE evidence (who text);
GRANT INSERT ON evidence TO PUBLIC;
CREATE FUNCTION format(text, text) RETURNS text LANGUAGE plpgsql
  AS 'BEGIN INSERT INTO public.evidence VALUES (current_user); RETURN pg_catalog.format($1, $2); END'
"""


@pytest.fixture
async def quiet(scene: Any) -> AsyncIterator[Any]:
    """A superuser's session in a database in which nobody else may create anything, and which the scene's engine calls home."""
    await scene.root.execute("CREATE DATABASE quiet")
    wire = await scene.place.root("quiet")
    await wire.execute("CREATE TABLE goods (a int); GRANT SELECT ON goods TO limited WITH GRANT OPTION")
    scene.engine = await scene.another_engine(connection_url=scene.place.server.url_template("quiet"))
    yield wire
    await wire.execute("REVOKE ALL ON SCHEMA public FROM readers")
    await wire.close()
    await scene.engine.close()
    await scene.root.execute("DROP DATABASE quiet WITH (FORCE)")


async def test_statements_see_the_public_schema(scene: Any, quiet: Any) -> None:
    """Unqualified names mean what is in `public`; in a block, once others may create there, no longer, and the error says so."""
    await scene.create(Terms(creation=(ROLE, LOOKS)))
    await quiet.execute("GRANT USAGE ON SCHEMA public TO readers")
    await scene.create(Terms(creation=(ROLE, LOOKS)))
    await quiet.execute("GRANT CREATE ON SCHEMA public TO readers")
    for engine in (scene.engine, await scene.another_engine(connection_url=scene.place.server.url_template("quiet"))):
        scene.engine = engine
        with pytest.raises(InstructionsFailed, match=r"goods.* does not exist; schema public is not searched"):
            await scene.create(Terms(creation=(ROLE, LOOKS)))
        user, _ = await scene.create(Terms(creation=(ROLE, 'GRANT SELECT ON goods TO "{{name}}"')))
        assert await quiet.fetchval("SELECT has_table_privilege($1::oid, 'goods', 'SELECT')", int(user.identity))
        # Its grant would keep its role.
        await quiet.execute(f'REVOKE ALL ON goods FROM "{user.name}" CASCADE')


@pytest.mark.parametrize("now", [True, False])
async def test_statements_call_nothing_that_was_planted(scene: Any, quiet: Any, *, now: bool) -> None:
    """A function in `public` that fits better than the server's own is not called, by whoever may create there, or could once."""
    await quiet.execute("GRANT CREATE ON SCHEMA public TO readers")
    await quiet.execute(f"{PLANTED}; ALTER FUNCTION format(text, text) OWNER TO readers")
    if not now:
        await quiet.execute("REVOKE CREATE ON SCHEMA public FROM readers")
    user, _ = await scene.create(Terms(creation=(ROLE, CALLS)))
    assert await scene.root.fetchval("SELECT pg_has_role($1::oid, 'readers', 'MEMBER')", int(user.identity))
    assert await quiet.fetch("SELECT who FROM evidence") == []


@pytest.mark.parametrize(
    ("statements", "calls"),
    [
        (
            "CREATE ROLE a LOGIN; GRANT b TO a; COMMENT ON ROLE a IS 'x'; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO a",
            False,
        ),
        ("SET ROLE b; REASSIGN OWNED BY a TO b; DROP OWNED BY a; DROP USER a; RESET ROLE; REVOKE b FROM a", False),
        ("CREATE ROLE a; SELECT f()", True),
        ("DO $$ BEGIN GRANT b TO a; END $$", True),
        ("GRANT b TO a; CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT g(); END", True),
        ("/* GRANT */ SELECT 1", True),
        ("GRANT b TO a /* ; */", True),
        ("CREATE TABLE t AS SELECT f()", True),
    ],
)
def test_what_may_call_something(statements: str, calls: bool) -> None:  # noqa: FBT001 - what is expected
    """Only commands that evaluate nothing are told apart; in doubt a command counts as one that does."""
    assert schemas.calls_nothing(statements) is not calls


async def test_text_after_a_comment_still_runs(scene: Any) -> None:
    """A statement that ends in a comment does not swallow the next one, nor ours."""
    user, _ = await scene.create(Terms(creation=(f"{ROLE} -- makes it", 'GRANT readers TO "{{name}}" -- and lets it read')))
    assert await scene.root.fetchval("SELECT pg_has_role($1::oid, 'readers', 'MEMBER')", int(user.identity))
    assert await scene.root.fetchval("SELECT shobj_description($1::oid, 'pg_authid')", int(user.identity)) == user.marker


async def test_grant_of_nothing_counts_as_failure(scene: Any) -> None:
    """A GRANT that only warned that it granted nothing fails the creation, and the user is taken away again."""
    await scene.root.execute(
        "CREATE TABLE IF NOT EXISTS half (a int); GRANT SELECT ON half TO limited; GRANT UPDATE ON half TO limited WITH GRANT OPTION"
    )
    terms = Terms(creation=(ROLE, 'GRANT SELECT ON half TO "{{name}}"'))
    if not scene.place.limited:
        # A superuser grants as the owner; only a role of fewer rights can grant nothing.
        terms = Terms(creation=(ROLE, "SET ROLE limited", 'GRANT SELECT ON half TO "{{name}}"', "RESET ROLE"))
    order = await scene.order(terms)
    with pytest.raises(InstructionsFailed, match="no privileges were granted"):
        await scene.engine.create(order)
    assert not await scene.exists(order.user.name)
    [outcome] = await scene.engine.prepare([await scene.order(terms)])
    assert isinstance(outcome.error, InstructionsFailed)


async def test_conflict_of_the_statements_is_not_a_taken_name(scene: Any) -> None:
    """Where the statements make something that exists already, other than the user, the name is not said to be taken."""
    order = await scene.order(Terms(creation=(ROLE, "CREATE ROLE readers")))
    with pytest.raises(InstructionsFailed):
        await scene.engine.create(order)
    assert not await scene.exists(order.user.name)


async def test_taken_name_is_never_altered(scene: Any) -> None:
    """A role of the same name keeps its password, comment and expiry, also when the statements would tolerate it."""
    order = await scene.order(Terms(creation=("ALTER ROLE \"{{name}}\" PASSWORD '{{password}}'",)))
    await scene.add_stranger(order.user.name, Secret("own"))
    with pytest.raises(UserNameTaken):
        await scene.engine.create(order)
    row = await scene.root.fetchrow(
        "SELECT rolvaliduntil, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1::text", order.user.name
    )
    assert tuple(row) == (None, None)
    await scene.session(order.user.name, Secret("own"))


async def test_nothing_to_run_is_said(scene: Any) -> None:
    """Without statements and groups no user is made."""
    with pytest.raises(InstructionsFailed, match="empty creation statements"):
        await scene.engine.create(await scene.order(Terms(options={"owned_objects": "contain"})))


async def test_colliding_grants_all_succeed(scene: Any) -> None:
    """Grants on one object from many connections at once, which the server refuses now and then, all come to pass."""
    table = "crowded_" + scene.origin.boot
    await scene.root.execute(f"CREATE TABLE {table} (a int); GRANT SELECT ON {table} TO limited WITH GRANT OPTION")
    engine = await scene.another_engine(max_open_connections=8)
    terms = Terms(creation=(ROLE, f'GRANT SELECT ON {table} TO "{{{{name}}}}"'))
    orders = [await scene.order(terms) for _ in range(24)]
    oids = await asyncio.gather(*(engine.create(order) for order in orders))
    assert len(set(oids)) == 24
    for order in orders:
        await scene.remove([order.user])
    await scene.root.execute(f"DROP TABLE {table}")


async def test_no_secret_shows_on_the_server(scene: Any) -> None:
    """Neither password nor verifier shows in sessions' last statements, statement statistics or the log; failures included."""
    engine = await scene.another_engine(max_open_connections=2)
    orders = [
        await scene.order(Terms(creation=(ROLE,))),
        await scene.order(),
        await scene.order(Terms(creation=(ROLE, "SELECT 1 / 0"))),
        await scene.order(Terms(creation=(ROLE.replace("'{{password}}'", "'{{password}}"),))),
        await scene.order(Terms(creation=(ROLE.replace("'{{password}}'", "{{password}}"),))),
        await scene.order(Terms(creation=('CREATE ROLE "{{name}}" LOGIN PASSWORD \'{{password}}',))),
    ]
    for order in orders:
        [error] = await asyncio.gather(engine.create(order), return_exceptions=True)
        assert order.password.verifier.reveal() not in str(error)
    await engine.prepare([*orders[2:], await scene.order()])
    shown = await scene.root.fetch("SELECT query FROM pg_stat_activity")
    shown += await scene.root.fetch("SELECT query FROM pg_stat_statements")
    text = scene.place.server.log() + "\n".join(row[0] for row in shown)
    for order in orders:
        for secret in (order.password.text.reveal(), *order.password.verifier.reveal().split("$")[1:]):
            assert secret not in text


async def test_statement_statistics_keep_the_applications(scene: Any, longer: Any) -> None:
    """The life of a user leaves no entry of its own in the statement statistics, where the login may keep it out."""
    if scene.place.limited:
        return
    await scene.root.execute("SELECT pg_stat_statements_reset()")
    [(user, _)] = await scene.prepare(1)
    await scene.engine.enable([longer(user)])
    await scene.engine.extend([longer(user)])
    await scene.remove([user])
    await scene.create()
    entries = "SELECT query FROM pg_stat_statements WHERE query ~* '(alter|create|drop) role' OR query ~ '^DO'"
    assert await scene.root.fetch(entries) == []


async def test_failure_of_one_prepared_user_is_its_own(scene: Any, errors_of: Any) -> None:
    """In a batch, users whose statements fail are undone alone; the others are there, without login and expired."""
    orders = [await scene.order(Terms(creation=(ROLE, "SELECT 1 / 0")) if place % 3 == 1 else None) for place in range(9)]
    found = errors_of(await scene.engine.prepare(orders), [order.user for order in orders])
    assert [isinstance(error, InstructionsFailed) for error in found] == [place % 3 == 1 for place in range(9)]
    names = [order.user.name for order in orders]
    rows = await scene.root.fetch(
        "SELECT rolcanlogin, rolvaliduntil < now() FROM pg_roles WHERE rolname = ANY ($1::text[])", names
    )
    assert [tuple(row) for row in rows] == [(False, True)] * 6


async def test_enabled_users_may_carry_any_name(scene: Any, longer: Any) -> None:
    """Names with quotes, backslashes, dollars and spaces pass through every verb; nothing of them is taken for SQL."""
    name = "v-it's \"odd\" \\' $b$ %s {{name}} --" + scene.origin.boot
    order = await scene.order(name=name)
    [outcome] = await scene.engine.prepare([order])
    assert outcome.error is None
    user = replace(order.user, identity=outcome.identity)
    [outcome] = await scene.engine.enable([longer(user)])
    assert outcome.error is None
    await scene.session(name, order.password.text)
    [outcome] = await scene.engine.extend([longer(user)])
    assert outcome.error is None
    assert all(errors == [None] for errors in (await scene.remove([user])).values())
    assert not await scene.exists(name)


async def test_renewal_statements_run(scene: Any, longer: Any) -> None:
    """A role's renewal statements run, filled in, beside the engine's own; where they fail nothing is extended."""
    table = f"renewed_{scene.origin.boot}"
    await scene.root.execute(f"CREATE TABLE {table} (name text, until timestamptz); GRANT INSERT ON {table} TO limited")
    of = Terms(
        options={"grant_roles": ["readers"]},
        renewal=(f"INSERT INTO public.{table} VALUES ('{{{{name}}}}', '{{{{expiration}}}}')",),
    )
    user, _ = await scene.create(of, lifetime_ms=60_000)
    bad, _ = await scene.create(replace(of, renewal=("SELECT 1 / 0",)), lifetime_ms=60_000)
    missing = (await scene.order(of)).user
    found = {outcome.number: outcome.error for outcome in await scene.engine.extend([longer(u) for u in (user, bad, missing)])}
    assert found[user.number] is None
    assert isinstance(found[bad.number], InstructionsFailed)
    assert isinstance(found[missing.number], UserMissing)
    assert await scene.root.fetchval(f"SELECT name FROM {table}") == user.name
    ends = "SELECT rolvaliduntil - now() > interval '50 minutes' FROM pg_roles WHERE oid = $1"
    assert await scene.root.fetchval(ends, int(user.identity))
    assert not await scene.root.fetchval(ends, int(bad.identity))
    await scene.root.execute(f"DROP TABLE {table}")
