"""A user's objects in one database by the slice, each slice a transaction of its own.

REASSIGN OWNED and DROP OWNED take all their locks at once, in a table of some thousand places that the application shares: for a user
that owns 4,000 tables they fail (53200). What a slice did stays done, whatever comes between: a crash, a restart, the end of our time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import asyncpg

from broker.clock import stopwatch_s
from broker.errors import UserRemains, WorkContinues
from broker_postgresql.batch import in_halves
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

SLICE = 100
"""Objects in one transaction; a table with its indexes, sequences and types takes some ten locks to drop."""
_PAGE = 10_000
_STATEMENTS = 1_000
_BRIEFLY = "SET LOCAL lock_timeout = '200ms';"
"""While we wait for an object, all who want it after us wait too."""
_LAST_OID = (1 << 32) - 1
_GONE = ("42704", "42P01", "42883", "3F000")
_TOGETHER = frozenset({
    "table", "view", "materialized view", "sequence", "foreign table", "function", "procedure", "aggregate", "type", "schema",
})  # fmt: skip
"""Kinds of which one DROP takes a list: so objects that depend on one another in a circle go together."""
_KEYWORDS = {"statistics object": "STATISTICS"}

T = TypeVar("T")
How = Callable[[str, Sequence[str]], str]
"""The statements that do away with these objects of one kind."""


@dataclass(slots=True)
class Pace:
    """Until when one call may go on with users that own much, and whether anything was done in it."""

    ends_s: float
    done: int = 0

    def check(self, database: str) -> None:
        """Raises `UserRemains` when the time is up; `WorkContinues` where some of it was of use."""
        if stopwatch_s() < self.ends_s:
            return
        text = f"database {database}: the user's objects are too many for one call"
        if self.done:
            raise WorkContinues(f"{text}; {self.done} are done, and it goes on")
        raise UserRemains(f"{text}, and none could be freed in its time")


def moving(heir: str) -> How:
    """Has objects handed to `heir`, a quoted name."""
    return lambda kind, names: ";".join(f"ALTER {_KEYWORDS.get(kind, kind.upper())} {name} OWNER TO {heir}" for name in names)


def dropping(kind: str, names: Sequence[str]) -> str:
    """Has objects dropped, unless others depend on them."""
    if kind == "large object":
        return f"SELECT pg_catalog.lo_unlink(o) FROM pg_catalog.unnest(ARRAY[{', '.join(names)}]::pg_catalog.oid[]) o"  # noqa: S608 - OIDs
    keyword = _KEYWORDS.get(kind, kind.upper())
    lists = [", ".join(names)] if kind in _TOGETHER else names
    return ";".join(f"DROP {keyword} IF EXISTS {some}" for some in lists)


async def work_off(session: Session, oid: int, how: How, pace: Pace) -> asyncpg.PostgresError | None:
    """Does `how` to all that the role owns in the session's database, again while that frees more; the error of one that stays.

    A few kinds of objects, of which nobody has many, are left out. Raises as `Pace.check` does.
    """
    while True:
        before = pace.done
        error = await _once(session, oid, how, pace)
        if error is None or pace.done == before:
            return error


async def run_each(session: Session, query: str, oid: int, pace: Pace) -> None:
    """Runs the statements that a query (of the role's OID and a number of rows) yields, by the slice, while it yields and they work."""
    done = -1
    while done < pace.done and (rows := await session.rows(QUERIES[query], oid, _STATEMENTS)):
        done = pace.done
        await run_all(session, [row["statement"] for row in rows], pace)


async def run_all(session: Session, statements: Sequence[str], pace: Pace) -> asyncpg.PostgresError | None:
    """Runs the statements by the slice; the first error of those that fail alone too."""
    return await _by_the_slice(session, statements, ";".join, pace)


async def _once(session: Session, oid: int, how: How, pace: Pace) -> asyncpg.PostgresError | None:
    first: asyncpg.PostgresError | None = None
    before = _LAST_OID
    while page := await session.rows(QUERIES["owned_ids"], oid, before, _PAGE):
        before = page[-1]["objid"]
        for start in range(0, len(page), SLICE):
            some = page[start : start + SLICE]
            ids = [row["classid"] for row in some], [row["objid"] for row in some]
            things = [(row["kind"], row["name"]) for row in await session.rows(QUERIES["owned_names"], oid, *ids)]
            error = await _by_the_slice(session, things, lambda slice_: ";".join(_runs(slice_, how)), pace)
            first = first or error
    return first


def _runs(things: Sequence[tuple[str, str]], how: How) -> list[str]:
    """The statements for these, neighbours of one kind together."""
    runs: list[tuple[str, list[str]]] = []
    for kind, name in things:
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(name)
    return [how(kind, names) for kind, names in runs]


async def _by_the_slice(
    session: Session, things: Sequence[T], text: Callable[[Sequence[T]], str], pace: Pace
) -> asyncpg.PostgresError | None:
    errors: list[asyncpg.PostgresError] = []

    async def act(some: Sequence[T]) -> None:
        pace.check(session.greeting.database)
        await session.run(_BRIEFLY + text(some))
        pace.done += len(some)

    async def fail(_one: T, error: asyncpg.PostgresError) -> None:
        if error.sqlstate not in _GONE:
            errors.append(error)

    for start in range(0, len(things), SLICE):
        await in_halves(things[start : start + SLICE], act, fail)
    return errors[0] if errors else None
