"""Lists of rights that fill up are told before they are full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker_postgresql import fullness

_GRANTEES = 1_300
_CROWD = f"""DO $$ BEGIN
  CREATE TABLE public."crowded goods" (name text, price int); CREATE SEQUENCE public.crowded_numbers; CREATE TABLE public.quiet (name text);
  FOR i IN 1..{_GRANTEES} LOOP
    IF to_regrole('crowd' || i) IS NULL THEN EXECUTE format('CREATE ROLE %I', 'crowd' || i); END IF;
    EXECUTE format('GRANT SELECT, UPDATE (price) ON public."crowded goods" TO %I', 'crowd' || i);
    EXECUTE format('GRANT USAGE ON SEQUENCE public.crowded_numbers TO %I', 'crowd' || i);
    IF i % 3 = 0 THEN EXECUTE format('GRANT SELECT ON public.quiet TO %I', 'crowd' || i); END IF;
  END LOOP;
END $$"""
_AWAY = """DROP TABLE IF EXISTS public."crowded goods", public.quiet; DROP SEQUENCE IF EXISTS public.crowded_numbers"""
_NOBODY = f"DO $$ BEGIN FOR i IN 1..{_GRANTEES} LOOP EXECUTE format('DROP ROLE IF EXISTS %I', 'crowd' || i); END LOOP; END $$"
_FULL = ['column public."crowded goods".price', "sequence public.crowded_numbers", 'table public."crowded goods"']


@pytest.fixture
async def other(scene: Any) -> AsyncIterator[Any]:
    """A superuser's session in the other database; what was crowded in either is taken away in the end."""
    wire = await scene.place.root("other")
    yield wire
    for each in (wire, scene.root):
        await each.execute(_AWAY)
    await scene.root.execute(_NOBODY)
    await wire.close()


def about(told: list[str], database: str) -> list[str]:
    """What is said to be half full in that database, sorted."""
    end = " is 50 % full of direct grants"
    start = f"database {database}: "
    return sorted(each.split(end)[0].removeprefix(start) for each in told if each.startswith(start) and end in each)


async def test_table_with_many_direct_grants_is_told(scene: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, column and sequence are named with how full they are, those with fewer grants are not; where users have rights, too."""
    assert await scene.engine.inspect() == []
    for wire in (scene.root, other):
        await wire.execute(_CROWD)
    told = list(await scene.engine.inspect())
    assert about(told, "app") == _FULL
    assert len(told) == len(_FULL)
    user, _ = await scene.create()
    for wire in (scene.root, other):
        await wire.execute(f'GRANT SELECT ON public.quiet TO "{user.name}"')
    told = list(await scene.engine.inspect())
    assert (about(told, "app"), about(told, "other")) == (_FULL, _FULL)
    assert len(told) == 2 * len(_FULL)
    assert await scene.engine.inspect() == told
    monkeypatch.setattr(fullness, "_NAMED", 1)
    assert list(await scene.engine.inspect())[1::2] == [
        f"database {name}: 2 more objects are as full of direct grants" for name in ("app", "other")
    ]


async def test_database_that_can_not_be_visited_is_told(scene: Any, other: Any) -> None:
    """The others are looked into all the same."""
    user, _ = await scene.create()
    await other.execute(f'CREATE TABLE public.quiet (name text); GRANT SELECT ON public.quiet TO "{user.name}"')
    engine = await scene.another_engine()
    await scene.root.execute("ALTER DATABASE other CONNECTION LIMIT 0; REVOKE CONNECT ON DATABASE other FROM PUBLIC")
    try:
        told = list(await engine.inspect())
    finally:
        await scene.root.execute("ALTER DATABASE other CONNECTION LIMIT -1; GRANT CONNECT ON DATABASE other TO PUBLIC")
    if scene.place.limited:
        [sentence] = told
        assert sentence.startswith("database other can't be looked into: ")
    else:
        assert told == []
