"""Sessions of users that are no more are found and ended."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from broker.errors import UserRemains
from broker.secret import Secret

CLOSED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
GRANT = "GRANT pg_signal_backend TO limited"


async def test_session_under_another_role_of_a_dropped_user_is_swept(scene: Any) -> None:
    """A session that reads through its group's rights after its user was dropped by hand is seen, with any login; ended, and counted."""
    user, password = await scene.create()
    wires = [await scene.session(user.name, password, database) for database in ("app", "other")]
    for wire in wires:
        await wire.execute("SET ROLE readers")
    await scene.remove_by_hand(user.name)
    for wire in wires:
        assert await wire.fetchval("SELECT name FROM goods") == "lamp"
    [seen] = await scene.engine.abandoned()
    assert (seen.identity, seen.sessions, seen.place, seen.error) == (user.identity, 2, "", None)
    for wire in wires:
        assert await wire.fetchval("SELECT name FROM goods") == "lamp"
    if scene.place.limited:
        await scene.root.execute(GRANT)
    try:
        engine = await scene.another_engine()
        [swept] = await engine.sweep()
        assert (swept.identity, swept.sessions, swept.place, swept.error) == (user.identity, 2, "", None)
        for wire in wires:
            with pytest.raises(CLOSED):
                await wire.fetchval("SELECT name FROM goods")
        assert await engine.sweep() == []
        assert await engine.abandoned() == []
    finally:
        await scene.root.execute("REVOKE pg_signal_backend FROM limited")


async def test_login_without_the_right_is_told_what_to_grant(scene: Any) -> None:
    """A plain login that may not end such sessions says so, with the statement, whether or not there are any."""
    swept = await scene.engine.sweep()
    if not scene.place.limited:
        assert swept == []
        return
    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    await scene.remove_by_hand(user.name)
    [told] = await scene.engine.sweep()
    for each, identity, count in ((swept[0], "", 0), (told, user.identity, 1)):
        assert isinstance(each.error, UserRemains)
        assert each.error.remedy == ('GRANT pg_signal_backend TO "limited"',)
        assert (each.identity, each.sessions) == (identity, count)
    await wire.close()


async def test_sweep_leaves_everybody_who_exists(scene: Any) -> None:
    """Sessions of strangers, of leased users with or without login and of the server itself go on."""
    user, password = await scene.create()
    off, word = await scene.create()
    wires = [await scene.session(user.name, password), await scene.session(off.name, word)]
    await scene.add_stranger(f"v-stranger-{user.number}", Secret("own"))
    wires.append(await scene.session(f"v-stranger-{user.number}", Secret("own")))
    await scene.engine.disable([off])
    assert [each for each in await scene.engine.sweep() if each.identity] == []
    for wire in [*wires, scene.root]:
        assert await wire.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("verb", ["sweep", "abandoned"])
async def test_user_made_while_sweeping_is_no_stranger(scene: Any, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """A user that was made, and logged in, while the first look was under way is left alone: only what is seen twice counts."""
    from broker_postgresql.session import Session  # noqa: PLC0415 - to be bent here alone

    user, password = await scene.create()
    wire = await scene.session(user.name, password)
    rows, looks = Session.rows, []

    async def blind_at_first(self: Session, query: str, *arguments: object) -> Any:
        found = await rows(self, query, *arguments)
        if "count(*) AS sessions" not in query:
            return found
        looks.append(query)
        return [{"oid": int(user.identity), "sessions": 1}] if len(looks) == 1 else found

    monkeypatch.setattr(Session, "rows", blind_at_first)
    assert [each for each in await getattr(scene.engine, verb)() if each.identity] == []
    assert len(looks) == 2
    assert await wire.fetchval("SELECT 1") == 1


async def test_broker_with_a_copy_of_the_store_is_told(scene: Any) -> None:
    """Another process that connects after us can't be one before us, and is named until it is gone; one that came before is not."""

    def twins(swept: Any) -> list[str]:
        return [str(each.error) for each in swept if "copy of this one's store" in str(each.error)]

    before = await scene.another_engine(boot="before")
    await before.open()
    assert twins(await scene.engine.sweep()) == []
    twin = await scene.another_engine(boot="twin")
    await twin.open()
    [told] = twins(await scene.engine.sweep())
    assert "127.0.0.1" in told
    await twin.close()
    async with asyncio.timeout(60):
        while twins(await scene.engine.sweep()):
            await asyncio.sleep(0.02)
