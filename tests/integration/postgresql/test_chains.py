"""Memberships that came of what a user granted go with it, to the end of the chain, and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms
from broker.secret import Secret

MAKES = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
TERMS = {
    "dropped": Terms(options={"owned_objects": "drop"}, creation=(MAKES,)),
    "by its own statements": Terms(creation=(MAKES,), revocation=('DROP OWNED BY "{{name}}"', 'DROP ROLE "{{name}}"')),
}
ROLES = ("link1", "link2", "link3", "aside", "aside2")


@pytest.fixture
async def club(scene: Any) -> AsyncIterator[Any]:
    """A scene with a group, logins that may pass it on once they have it, and one that has it from elsewhere and passed it on."""
    made = ";".join(f"CREATE ROLE {name} LOGIN PASSWORD 'word'" for name in ROLES)
    await scene.root.execute(f"CREATE ROLE club; {made}; GRANT club TO aside WITH ADMIN OPTION")
    wire = await scene.session("aside", Secret("word"))
    await wire.execute("GRANT club TO aside2")
    yield scene
    await scene.root.execute("REVOKE club FROM aside CASCADE")
    for _ in ROLES:
        for name in ROLES:
            if await scene.exists(name):
                await scene.root.execute(f"DROP OWNED BY {name}")
    await scene.root.execute(f"DROP ROLE club, {', '.join(ROLES)}")


async def granting(scene: Any, of: Terms, *, to: str = "link1") -> Any:
    """A user with the group's ADMIN OPTION that passed it on."""
    user, password = await scene.create(of)
    await scene.root.execute(f'GRANT club TO "{user.name}" WITH ADMIN OPTION')
    wire = await scene.session(user.name, password)
    await wire.execute(f"GRANT club TO {to} WITH ADMIN OPTION")
    return user


async def act(scene: Any, name: str, statements: str) -> None:
    """One of the logins does something."""
    await (await scene.session(name, Secret("word"))).execute(statements)


async def members(scene: Any) -> set[str]:
    """Who is in the group."""
    query = "SELECT member::regrole::text FROM pg_auth_members WHERE roleid = 'club'::regrole"
    return {row[0] for row in await scene.root.fetch(query)}


def gone(said: dict[str, list[Any]]) -> bool:
    """Whether every stage succeeded for every user."""
    return not any(error for errors in said.values() for error in errors)


@pytest.mark.parametrize("of", TERMS)
async def test_whole_chain_goes_with_the_user(club: Any, of: str) -> None:
    """Whoever got a group by way of whoever got it from the user loses it, also who granted it to itself; others' grants stay."""
    user = await granting(club, TERMS[of])
    await act(club, "link1", "GRANT club TO link2 WITH ADMIN OPTION")
    await act(club, "link2", "GRANT club TO link3; GRANT club TO link1")
    if club.place.new:
        await act(club, "link1", "GRANT club TO link1 GRANTED BY link1")
    assert await members(club) > {"link1", "link2", "link3", "aside", "aside2"}
    assert gone(await club.remove([user]))
    assert await members(club) == {"aside", "aside2"}


async def test_chain_by_way_of_a_member_goes_with_the_user(club: Any) -> None:
    """A login that passed the group on as a member of one that had it from the user, as the server notes it, is part of the chain."""
    user = await granting(club, TERMS["dropped"])
    await club.root.execute("GRANT link1 TO link2")
    await act(club, "link2", "GRANT club TO link3")
    assert gone(await club.remove([user]))
    assert await members(club) == {"aside", "aside2"}


async def test_member_with_another_way_to_the_group_passes_on_what_stays(club: Any) -> None:
    """What was granted by somebody who has the ADMIN OPTION from elsewhere too is not the user's."""
    user = await granting(club, TERMS["dropped"])
    await club.root.execute("GRANT aside TO link2")
    await act(club, "link2", "GRANT club TO link3")
    assert gone(await club.remove([user]))
    assert await members(club) == {"aside", "aside2", "link3"}


async def test_membership_that_somebody_holds_locked_is_told(club: Any) -> None:
    """Where a link of the chain can't be taken back at once the user stays, with the statement, and goes when it can."""
    user = await granting(club, TERMS["dropped"])
    other, by = await club.place.root(), f' GRANTED BY "{user.name}"' if club.place.new else ""
    try:
        await other.execute(f"BEGIN; REVOKE ADMIN OPTION FOR club FROM link1{by}")
        [outcome] = await club.engine.release([user])
    finally:
        await other.close()
    assert isinstance(outcome.error, UserRemains)
    assert outcome.error.remedy[0] == (f"REVOKE club FROM link1{f'{by} CASCADE' if by else ''};")
    assert gone(await club.remove([user]))
    assert await members(club) == {"aside", "aside2"}
