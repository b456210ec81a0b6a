"""A user that could make roles could leave logins behind: its role is refused, and one that was kept all the same is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from broker.clock import stopwatch_s
from broker.errors import InstructionsFailed, UserRemains
from broker.model import Terms
from broker.secret import Secret

LIMIT_S = 60
ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"
MAKER = Terms(creation=(f"{ROLE} CREATEROLE",))
CLOSED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@pytest.fixture
async def group(scene: Any) -> AsyncIterator[str]:
    """A group that makes roles."""
    name = f"makers_{scene.origin.boot}"
    await scene.root.execute(f"CREATE ROLE {name} CREATEROLE")
    if scene.place.new:
        await scene.root.execute(f"GRANT {name} TO limited WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    yield name
    await _drop(scene, name)


@pytest.fixture
async def mates(scene: Any) -> AsyncIterator[tuple[str, str]]:
    """Names of roles that a leased user is to make; they are removed in the end."""
    names = (f"mate_{scene.origin.boot}", f"mates'_{scene.origin.boot}")
    yield names
    for name in names:
        await _drop(scene, name)


async def _drop(scene: Any, name: str) -> None:
    if await scene.exists(name):
        # Whoever was given the group by one of our creators is gone by now, but that creator is not.
        await scene.root.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


async def test_role_whose_users_could_make_roles_is_refused(scene: Any, group: str) -> None:
    """By an attribute of theirs, or of a group that they could become: the rehearsal says so, and leaves nothing."""
    before = await scene.root.fetch("SELECT rolname FROM pg_roles WHERE rolname ~ '^v-'")
    for terms, able in ((MAKER, "v-"), (Terms(options={"grant_roles": [group]}), group)):
        with pytest.raises(InstructionsFailed, match="could make roles") as told:
            await scene.engine.rehearse(terms)
        assert able in str(told.value)
    await scene.engine.rehearse(Terms(creation=(ROLE,), options={"grant_roles": ["readers"]}))
    assert await scene.root.fetch("SELECT rolname FROM pg_roles WHERE rolname ~ '^v-'") == before


async def test_group_behind_a_group_is_seen(scene: Any, group: str) -> None:
    """A group that could become one which makes roles is no way round."""
    await scene.root.execute(f"GRANT {group} TO readers")
    try:
        with pytest.raises(InstructionsFailed, match=group):
            await scene.engine.rehearse(Terms(options={"grant_roles": ["readers"]}))
    finally:
        await scene.root.execute(f"REVOKE {group} FROM readers")


async def test_user_that_made_logins_is_held_until_they_are_off(scene: Any, mates: tuple[str, str]) -> None:
    """It loses login and sessions at once and is kept, with what the server knows of named; the statements told finish it.

    They use no operator of anybody's, who may own the database, and so have put a schema before the catalogue.
    """
    user, password = await scene.create(MAKER)
    other, _ = await scene.create()
    first, second = mates
    wire = await scene.session(user.name, password)
    await wire.execute(f"CREATE ROLE \"{first}\" LOGIN CREATEROLE PASSWORD 'mate'")
    theirs = await scene.session(first, Secret("mate"))
    await theirs.execute(f"CREATE ROLE \"{second}\" LOGIN PASSWORD 'mate'; SELECT lo_create({5_000_000 + user.number})")
    last = await scene.session(second, Secret("mate"))
    said = await scene.remove([user, other])
    assert [error is None for error in said["drop"]] == [False, True]
    [held, _] = said["drop"]
    assert isinstance(held, UserRemains)
    assert "could make roles" in str(held)
    assert await scene.log_in(user.name, password) is None
    with pytest.raises(CLOSED):
        await wire.execute("SELECT 1")
    for name in mates:
        assert (name in str(held)) is scene.place.new
    await scene.root.execute(
        "CREATE SCHEMA trap; CREATE FUNCTION trap.f(name, name) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'it ran'; END $$;"
        "CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = name, FUNCTION = trap.f); SET search_path = trap, pg_catalog"
    )
    try:
        for remedy in held.remedy:
            await scene.root.execute(remedy)
    finally:
        await scene.root.execute("RESET search_path; DROP SCHEMA trap CASCADE")
    assert gone(await scene.remove([user]))
    assert not await scene.exists(user.name)
    assert (
        await scene.root.fetchval("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = $1", 5_000_000 + user.number) == 1
    )
    for name, session in ((first, theirs), (second, last)):
        assert await scene.exists(name)
        if scene.place.new:
            await _until_cut(session)
            assert await scene.log_in(name, Secret("mate")) is None


async def _until_cut(wire: Any) -> None:
    deadline_s = stopwatch_s() + LIMIT_S
    while True:
        try:
            await wire.execute("SELECT 1")
        except CLOSED:
            return
        assert stopwatch_s() < deadline_s
        await asyncio.sleep(0.01)


async def test_user_that_could_become_who_makes_roles_is_held(scene: Any, group: str) -> None:
    """A membership that it was given later counts, whoever granted it; revoked as told, the user goes."""
    user, password = await scene.create()
    await scene.root.execute(f'GRANT {group} TO "{user.name}"')
    [error] = (await scene.remove([user]))["drop"]
    assert isinstance(error, UserRemains)
    assert group in str(error)
    assert await scene.log_in(user.name, password) is None
    for remedy in error.remedy:
        await scene.root.execute(remedy)
    assert gone(await scene.remove([user]))


async def test_who_says_that_it_was_looked_to_is_not_asked(scene: Any) -> None:
    """A role whose own revocation statements take the right away has settled the matter by them."""
    user, _ = await scene.create(Terms(creation=MAKER.creation, revocation=('ALTER ROLE "{{name}}" NOCREATEROLE',)))
    assert gone(await scene.remove([user]))


async def test_administrator_of_a_group_is_not_held(scene: Any) -> None:
    """A user that may hand a group on, and can make no roles, is dropped as ever."""
    user, _ = await scene.create()
    await scene.root.execute(f'CREATE ROLE handed_on; GRANT handed_on TO "{user.name}" WITH ADMIN OPTION')
    try:
        assert gone(await scene.remove([user]))
    finally:
        await scene.root.execute("DROP ROLE handed_on")
