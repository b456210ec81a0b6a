"""Lists of rights that fill up: a table, sequence or column takes some 2,440 direct grants, and then GRANT fails for everybody.

A row of the catalogue must fit into a page, so the compressed size of the list decides, not the number of its entries. Lists of schemas,
functions, types and databases are stored apart where they grow long, and memberships have no limit.
"""

from __future__ import annotations

from broker.errors import EngineError
from broker_postgresql.lanes import Lane
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_TOLD_FROM = 4_000
_FULL = 7_980
"""Bytes; measured with versions 15 and 18, whose pages have 8 KiB."""
_NAMED = 20
_STEP = 10
"""Told in per cent by tens, so that not every grant is news."""


async def full_lists(lane: Lane, markers: str) -> list[str]:
    """Sentences about lists of rights that are half full or more.

    Looks into the home database, and into every other one in which a user whose marker is LIKE `markers` was granted something. Raises
    `DatabaseUnavailable` for the home database alone; that another one could not be visited is a sentence.
    """
    async with lane.session() as session:
        told = await _told(session)
        others = await session.rows(QUERIES["granted_databases"], markers)
    for name in (row["name"] for row in others):
        try:
            async with lane.visit(name) as session:
                told += await _told(session)
        except EngineError as error:
            told.append(f"database {name} can't be looked into: {error}")
    return told


async def _told(session: Session) -> list[str]:
    database = session.greeting.database
    rows = await session.rows(QUERIES["long_lists"], _TOLD_FROM, _NAMED)
    told = [_sentence(database, row["what"], row["bytes"]) for row in rows]
    if rows and (more := rows[0]["found"] - len(rows)):
        told.append(f"database {database}: {more:,} more objects are as full of direct grants")
    return told


def _sentence(database: str, what: str, size: int) -> str:
    percent = min(100, size * 100 // _FULL // _STEP * _STEP)
    return (
        f"database {database}: {what} is {percent} % full of direct grants; once it is full, GRANT on it fails, and so may REVOKE: "
        "grant to a role that users join instead (grant_roles)"
    )
