"""Names that are no text, which a user gives to what it leaves, keep nobody but that user, and it without rights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import UserRemains
from broker.model import Terms

ODD = "odd"
MADE = "DO $$ BEGIN EXECUTE format('CREATE TABLE %I (a int)', chr({byte}) || 't_{n}'); END $$"
PASSED_ON = "DO $$ BEGIN EXECUTE format('GRANT SELECT (a) ON %I TO PUBLIC', chr(129) || 'theirs'); END $$"
PREPARED = r"BEGIN; SELECT lo_create(0); PREPARE TRANSACTION E'it\'s \\{n}\377\033'"


def terms(owned: str) -> Terms:
    """A role with a group."""
    return Terms(options={"grant_roles": ["readers"], "owned_objects": owned})


@pytest.fixture(params=["SQL_ASCII", "WIN1252"])
async def odd(scene: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A scene with a database of an encoding in which there are bytes that are no text elsewhere."""
    await scene.root.execute(f"CREATE DATABASE {ODD} ENCODING '{request.param}' LOCALE 'C' TEMPLATE template0")
    wire = await scene.place.root(ODD)
    await wire.execute("GRANT CREATE ON SCHEMA public TO readers")
    await wire.close()
    yield scene
    await scene.engine.close()
    await scene.root.execute(f"DROP DATABASE {ODD} WITH (FORCE)")


def gone(said: dict[str, list[Any]], place: int) -> bool:
    """Whether every stage succeeded for the user at this place of the batch."""
    return not any(errors[place] for errors in said.values())


async def leave(scene: Any, user: Any, password: Any, statement: str) -> None:
    """The user leaves something in the odd database."""
    wire = await scene.session(user.name, password, ODD)
    await wire.execute(statement.replace("{n}", f"{user.number}"))


async def groups(scene: Any, user: Any) -> int:
    """Of how many groups the user is a member."""
    return int(await scene.root.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = $1::text::oid", user.identity))


@pytest.mark.parametrize("owned", ["contain", "drop"])
async def test_name_that_cannot_be_read_keeps_its_user_alone(odd: Any, owned: str) -> None:
    """In the home database, where names are looked at: the user is kept, as stripped as any other, or goes; the batch goes on."""
    odd.engine = await odd.another_engine(connection_url=odd.place.server.url_template(ODD))
    (first, _), (user, password), (last, _) = [await odd.create(terms(owned)) for _ in range(3)]
    await leave(odd, user, password, MADE.format(byte=129, n=user.number))
    said = await odd.remove([first, user, last])
    assert gone(said, 0)
    assert gone(said, 2)
    if gone(said, 1):
        assert owned == "drop"
        return
    error = said["release"][1]
    assert isinstance(error, UserRemains)
    assert not await groups(odd, user)
    wire = await odd.place.root(ODD)
    for statement in error.remedy:
        await wire.execute(statement)
    await wire.close()
    assert gone(await odd.remove([user]), 0)
    heir = await odd.root.fetchval("SELECT rolname FROM pg_roles WHERE rolname LIKE 'left_over_%'")
    wire = await odd.place.root(ODD)
    await wire.execute(f'DROP OWNED BY "{heir}"; DROP ROLE "{heir}"')
    await wire.close()


async def test_name_that_cannot_be_read_in_another_database_keeps_its_user_alone(odd: Any) -> None:
    """Who has rights in the same database goes."""
    (user, password), (other, _) = [await odd.create(terms("drop")) for _ in range(2)]
    wire = await odd.place.root(ODD)
    await wire.execute(
        "DO $$ BEGIN EXECUTE format('CREATE TABLE %1$I (a int); GRANT SELECT ON %1$I TO %2$I WITH GRANT OPTION;"
        " GRANT SELECT ON %1$I TO %3$I',"
        f" chr(129) || 'theirs', '{user.name}', '{other.name}'); END $$"
    )
    if odd.place.limited:
        await wire.execute("DO $$ BEGIN EXECUTE format('ALTER TABLE %I OWNER TO limited', chr(129) || 'theirs'); END $$")
    await wire.close()
    await leave(odd, user, password, PASSED_ON)
    said = await odd.remove([user, other])
    assert gone(said, 1)
    assert isinstance(said["release"][0], UserRemains)
    assert not await groups(odd, user)


async def test_transaction_prepared_under_any_bytes_is_rolled_back(odd: Any) -> None:
    """Its name is read, and written, as the bytes that it is."""
    (user, password), (other, _) = [await odd.create(terms("drop")) for _ in range(2)]
    await leave(odd, user, password, PREPARED)
    said = await odd.remove([user, other])
    assert gone(said, 0)
    assert gone(said, 1)
    assert not await odd.root.fetchval("SELECT count(*) FROM pg_prepared_xacts")
