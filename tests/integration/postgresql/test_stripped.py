"""A user that can't be finished keeps no rights of its groups; who or what is in the way is told, with the statement that ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms
from broker.secret import Secret

QUIET = Terms(options={"grant_roles": ["readers"], "owned_objects": "drop"})
KEEPING = Terms(options={"grant_roles": ["readers"], "owned_objects": "contain"})
LEAK = (
    "CREATE VIEW leak_{n} AS SELECT * FROM goods; GRANT SELECT ON leak_{n} TO PUBLIC;"
    "CREATE FUNCTION leak_{n}() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT min(name) FROM goods'"
)
"""What gives a user's rights to everybody."""
HOGS = 10


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A backend that looks at no interrupt, as one does that computes the distance of two long paths; harmless between statements."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def stranger(scene: Any) -> AsyncIterator[Any]:
    """A session of somebody who may read nothing by itself."""
    name = "v-stranger"
    await scene.add_stranger(name, scene.place.password)
    wire = await scene.session(name, scene.place.password)
    yield wire
    # What a test that failed left open or prepared would keep the clearing up waiting.
    await scene.root.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1::text", name)
    for gid in await scene.root.fetch("SELECT gid FROM pg_prepared_xacts"):
        await scene.root.execute(f"ROLLBACK PREPARED '{gid[0]}'")


async def refused(wire: Any, query: str) -> None:
    """The server has it that this may not be read."""
    with pytest.raises(Exception, match="permission denied"):
        await wire.fetch(query)


async def nothing_leaks(wire: Any, number: int) -> None:
    """Neither the view nor the function of the user answers."""
    await refused(wire, f"SELECT * FROM leak_{number}")
    await refused(wire, f"SELECT leak_{number}()")


def the_error(said: dict[str, list[Any]], stage: str) -> UserRemains:
    """Of the only user, at this stage and at no earlier one."""
    assert next(verb for verb, errors in said.items() if errors[0]) == stage
    error = said[stage][0]
    assert isinstance(error, UserRemains)
    return error


async def finish(scene: Any, user: Any, remedy: str) -> None:
    """Runs what was told; then the user goes."""
    await scene.root.execute(remedy)
    for _ in range(2):
        said = await scene.remove([user])
        if not any(errors[0] for errors in said.values()):
            break
    assert not await scene.exists(user.name)


async def holding(scene: Any) -> tuple[Any, Secret, int]:
    """A user that holds its own role's row locked, its password, and the session's process."""
    user, password = await scene.create(QUIET)
    wire = await scene.session(user.name, password)
    await wire.execute(f"BEGIN; ALTER ROLE \"{user.name}\" PASSWORD 'x'")
    return user, password, wire.get_server_pid()


async def test_login_that_cant_be_turned_off_reads_nothing(scene: Any) -> None:
    """A session that can't be ended holds the role: its user may log in, and has no more rights than a stranger; the process is named."""
    user, password, pid = await holding(scene)
    with stopped(pid):
        for _ in range(2):
            [outcome] = await scene.engine.disable([user])
            assert isinstance(outcome.error, UserRemains)
            assert "memberships were taken away" in str(outcome.error)
            [remedy] = outcome.error.remedy
            assert user.name in remedy
            assert "restart" in remedy
            assert remedy.endswith(f"SELECT pg_catalog.pg_terminate_backend({pid});")
            again = await scene.session(user.name, password)
            await refused(again, "SELECT * FROM goods")
    said = await scene.remove([user])
    assert not any(errors[0] for errors in said.values())
    assert await scene.log_in(user.name, password) is None


async def test_session_that_cant_be_ended_reads_nothing(scene: Any) -> None:
    """The same, where the login could be turned off: what the session goes on with has no rights."""
    user, password = await scene.create(QUIET)
    wire = await scene.session(user.name, password)
    pid = wire.get_server_pid()
    with stopped(pid):
        [outcome] = await scene.engine.disable([user])
        assert outcome.error is None
        [outcome] = await scene.engine.end_sessions([user])
        assert isinstance(outcome.error, UserRemains)
        assert outcome.error.remedy[-1].endswith(f"pg_terminate_backend({pid});")
        assert not await scene.root.fetchval("SELECT pg_has_role($1::oid, 'readers', 'MEMBER')", int(user.identity))
    said = await scene.remove([user])
    assert not any(errors[0] for errors in said.values())


async def test_users_that_hold_their_roles_hold_up_nobody(scene: Any) -> None:
    """However many of a batch can't be turned off: the others' turn comes before theirs."""
    hogs = [await holding(scene) for _ in range(HOGS)]
    others = [await scene.create(QUIET) for _ in range(3)]
    users = [*(user for user, _, _ in hogs), *(user for user, _ in others)]
    for _, _, pid in hogs:
        os.kill(pid, signal.SIGSTOP)
    try:
        outcomes = await scene.engine.disable(users)
    finally:
        for _, _, pid in hogs:
            os.kill(pid, signal.SIGCONT)
    assert [bool(outcome.error) for outcome in outcomes] == [True] * HOGS + [False] * 3
    for user, password, _ in hogs:
        opened = await scene.log_in(user.name, password)
        if opened is not None:
            await refused(opened.wire, "SELECT * FROM goods")
    said = await scene.remove(users)
    assert not any(error for errors in said.values() for error in errors)


async def test_contained_user_lends_nothing(scene: Any, stranger: Any) -> None:
    """What is kept until somebody decides, and open to PUBLIC, answers nobody any more; it is all there."""
    user, password = await scene.create(KEEPING)
    wire = await scene.session(user.name, password)
    await wire.execute(LEAK.format(n=user.number))
    assert await stranger.fetchval(f"SELECT leak_{user.number}()") == "lamp"
    for _ in range(2):
        error = the_error(await scene.remove([user]), "release")
        await nothing_leaks(stranger, user.number)
    keeper = f"left_over_{user.identity}"
    await finish(scene, user, error.remedy[0])
    await nothing_leaks(stranger, user.number)
    await scene.root.execute(f"DROP OWNED BY {keeper}; DROP ROLE {keeper}")


async def test_user_that_cant_be_dropped_lends_nothing(scene: Any, stranger: Any) -> None:
    """What others tied to its objects keeps DROP OWNED from all of them: they answer nobody meanwhile."""
    user, password = await scene.create(QUIET)
    wire, n = await scene.session(user.name, password), user.number
    await wire.execute(f"{LEAK.format(n=n)}; CREATE TABLE anchor_{n} (a int); GRANT ALL ON anchor_{n} TO readers")
    await wire.execute(f"SET ROLE readers; CREATE VIEW hook_{n} AS SELECT * FROM anchor_{n}")
    the_error(await scene.remove([user]), "release")
    await nothing_leaks(stranger, n)
    await finish(scene, user, f"DROP VIEW hook_{n}")


async def test_who_holds_the_objects_is_named(scene: Any, stranger: Any) -> None:
    """Somebody's open transaction on a table keeps a user from being freed: who it is, is told, and the user lends nothing meanwhile."""
    user, password = await scene.create(QUIET)
    wire, n = await scene.session(user.name, password), user.number
    await wire.execute(f'{LEAK.format(n=n)}; CREATE TABLE held_{n} (a int); GRANT SELECT ON held_{n} TO "v-stranger"')
    await stranger.execute(f"BEGIN; SELECT * FROM held_{n}")
    error = the_error(await scene.remove([user]), "release")
    assert "login v-stranger" in error.remedy[0]
    assert f"pg_terminate_backend({stranger.get_server_pid()});" in error.remedy[0]
    onlooker = await scene.session("v-stranger", scene.place.password)
    await nothing_leaks(onlooker, n)
    await finish(scene, user, error.remedy[0])


@pytest.mark.parametrize("prepared", [False, True])
async def test_who_grants_to_the_user_meanwhile_is_named(scene: Any, stranger: Any, *, prepared: bool) -> None:
    """A grant to the user, in somebody's open or prepared transaction, keeps its role from being dropped."""
    user, _ = await scene.create(QUIET)
    await stranger.execute("BEGIN")
    await stranger.execute(f"SELECT lo_create({9_000_000 + user.number})")
    await stranger.execute(f'GRANT SELECT ON LARGE OBJECT {9_000_000 + user.number} TO "{user.name}"')
    if prepared:
        await stranger.execute("PREPARE TRANSACTION 'granting'")
    [remedy] = the_error(await scene.remove([user]), "drop").remedy
    end = (
        "ROLLBACK PREPARED 'granting';" if prepared else f"SELECT pg_catalog.pg_terminate_backend({stranger.get_server_pid()});"
    )
    assert remedy.endswith(end)
    await finish(scene, user, remedy)


async def test_change_of_settings_prepared_under_a_group_is_told(scene: Any, stranger: Any) -> None:
    """Such a transaction holds the role itself, which nothing but its end lets go of."""
    user, password = await scene.create(QUIET)
    wire = await scene.session(user.name, password)
    await wire.execute(
        f"BEGIN; ALTER ROLE \"{user.name}\" SET work_mem = '1MB'; SET ROLE readers; PREPARE TRANSACTION 'settings'"
    )
    said = await scene.remove([user])
    if any(errors[0] for errors in said.values()):
        [remedy] = next(errors[0] for errors in said.values() if errors[0]).remedy
        assert remedy.endswith("of readers */ ROLLBACK PREPARED 'settings';")
        await finish(scene, user, remedy)
    assert not await scene.exists(user.name)


async def test_who_keeps_a_session_from_ending_is_named(scene: Any, stranger: Any) -> None:
    """A session that drops its temporary function on its way out waits for whoever holds the table that calls it."""
    user, password = await scene.create(QUIET)
    wire, n = await scene.session(user.name, password), user.number
    await wire.execute(
        f'CREATE TABLE held_{n} (a int); GRANT SELECT ON held_{n} TO "v-stranger";'
        "CREATE FUNCTION pg_temp.one() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    await wire.execute(f"ALTER TABLE held_{n} ALTER a SET DEFAULT pg_temp.one()")
    await stranger.execute(f"BEGIN; SELECT * FROM held_{n}")
    remedy = the_error(await scene.remove([user]), "end_sessions").remedy[0]
    assert "login v-stranger" in remedy
    assert remedy.endswith(f"SELECT pg_catalog.pg_terminate_backend({stranger.get_server_pid()});")
    await finish(scene, user, remedy)


async def test_rights_of_its_own_go_too(scene: Any, stranger: Any) -> None:
    """What a role's statements grant to each user by name is taken away with the memberships, whatever it is a right on."""
    n = scene.origin.boot
    await scene.root.execute(
        f'CREATE SCHEMA "own {n}"; CREATE TABLE "own {n}"."t.b" (a int, b int); CREATE SEQUENCE "own {n}".s;'
        f"CREATE FUNCTION \"own {n}\".f(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        f'GRANT ALL ON SCHEMA "own {n}" TO limited; ALTER SCHEMA "own {n}" OWNER TO limited; ALTER TABLE "own {n}"."t.b" OWNER TO limited;'
        f'ALTER SEQUENCE "own {n}".s OWNER TO limited; ALTER FUNCTION "own {n}".f OWNER TO limited'
    )
    granted = (
        "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
        f'GRANT USAGE, CREATE ON SCHEMA "own {n}" TO "{{{{name}}}}"',
        f'GRANT SELECT ON "own {n}"."t.b" TO "{{{{name}}}}"; GRANT UPDATE (b) ON "own {n}"."t.b" TO "{{{{name}}}}"',
        f'GRANT USAGE ON SEQUENCE "own {n}".s TO "{{{{name}}}}"; GRANT EXECUTE ON FUNCTION "own {n}".f TO "{{{{name}}}}"',
    )
    user, password = await scene.create(Terms(creation=granted))
    wire = await scene.session(user.name, password)
    await wire.execute(f'CREATE VIEW "own {n}".leak AS SELECT a FROM "own {n}"."t.b"; GRANT SELECT ON "own {n}".leak TO PUBLIC')
    await scene.root.execute(f'GRANT USAGE ON SCHEMA "own {n}" TO PUBLIC')
    assert await stranger.fetch(f'SELECT * FROM "own {n}".leak') == []
    the_error(await scene.remove([user]), "release")
    await refused(stranger, f'SELECT * FROM "own {n}".leak')
    left = "SELECT count(*) FROM pg_shdepend WHERE refobjid = $1::oid AND deptype = 'a'"
    assert await scene.root.fetchval(left, int(user.identity)) == 0
    await finish(scene, user, f'DROP SCHEMA "own {n}" CASCADE')


async def test_way_to_the_heir_stays(scene: Any, stranger: Any) -> None:
    """A membership by which a user could become its heir decides over its objects: it stays, the others go."""
    heir = f"heir_{scene.origin.boot}"
    admin = " WITH ADMIN OPTION" if scene.place.new else ""
    await scene.root.execute(
        f"CREATE ROLE {heir}; GRANT {heir} TO limited{admin}; GRANT CREATE ON SCHEMA public TO {heir};"
        f"CREATE TABLE loom_{heir} (a int); GRANT SELECT ON loom_{heir} TO {heir}"
    )
    options = {"grant_roles": ["readers", heir], "owned_objects": "reassign", "reassign_to": heir}
    user, password = await scene.create(Terms(options=options))
    wire, n = await scene.session(user.name, password), user.number
    await wire.execute(f'CREATE TABLE held_{n} (a int); GRANT SELECT ON held_{n} TO "v-stranger"')
    await stranger.execute(f"BEGIN; SELECT * FROM held_{n}")
    the_error(await scene.remove([user]), "release")
    groups = "SELECT array_agg(DISTINCT roleid::regrole::text) FROM pg_auth_members WHERE member = $1::oid"
    assert await scene.root.fetchval(groups, int(user.identity)) == [heir]
    await stranger.execute("ROLLBACK")
    said = await scene.remove([user])
    assert not any(errors[0] for errors in said.values())
    assert await scene.root.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = $1::text", f"held_{n}") == heir
    await scene.root.execute(f"DROP TABLE loom_{heir}; DROP OWNED BY {heir}; DROP ROLE {heir}")


async def test_what_a_user_is_held_for_stays(scene: Any) -> None:
    """Whether a user could have made logins is asked before it is dropped: the membership that says so stays until then."""
    makers = f"makers_{scene.origin.boot}"
    await scene.root.execute(f"CREATE ROLE {makers} CREATEROLE")
    user, password = await scene.create(KEEPING)
    await scene.root.execute(f'GRANT {makers} TO "{user.name}"')
    wire = await scene.session(user.name, password)
    await wire.execute(f"CREATE TABLE held_{user.number} (a int)")
    the_error(await scene.remove([user]), "release")
    groups = "SELECT array_agg(DISTINCT roleid::regrole::text) FROM pg_auth_members WHERE member = $1::oid"
    assert await scene.root.fetchval(groups, int(user.identity)) == [makers]
    await scene.root.execute(f"DROP TABLE held_{user.number}")
    assert "could make roles" in str(the_error(await scene.remove([user]), "drop"))
    await finish(scene, user, f"DROP ROLE {makers}")
