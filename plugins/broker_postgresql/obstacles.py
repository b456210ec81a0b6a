"""Who keeps a user from being changed, freed or ended, and the statements by which that ends: told, since it is others' work that ends."""

from __future__ import annotations

import asyncpg

from broker_postgresql.failures import LOCK_TIMEOUT
from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier, octets
from broker_postgresql.session import Session

_LAST_RESORT = "where this has no effect, only a restart of the server ends it"


async def holders(session: Session, one: Present, error: asyncpg.PostgresError) -> tuple[str, ...]:
    """After a wait for a lock that was in vain: statements that end the transactions which hold such locks, if there are any."""
    return await _told(session, "obstacles", one.oid) if error.sqlstate == LOCK_TIMEOUT else ()


async def remaining(session: Session, oid: int) -> tuple[str, ...]:
    """What ends a role's sessions that did not end when they were told to: first whoever they wait for, then they themselves."""
    return await _told(session, "waited_for", oid)


async def _told(session: Session, query: str, oid: int) -> tuple[str, ...]:
    return tuple(_by_hand(row) for row in await session.rows(QUERIES[query], oid))


def _by_hand(row: asyncpg.Record) -> str:
    if row["gid"] is not None:
        return rolled_back(row["gid"], row["database"], row["owner"])
    whose = f"{_where(row['database'])}, login {row['owner']}; {_LAST_RESORT}"
    return f"{comment(whose)} SELECT pg_catalog.pg_terminate_backend({row['pid']});"


def rolled_back(gid: bytes, database: str, owner: str = "") -> str:
    """The statement that ends a prepared transaction, with where it is to be run."""
    about = f"{_where(database)}, of {owner}" if owner else _where(database)
    return f"{comment(about)} ROLLBACK PREPARED {octets(gid)};"


def _where(database: str) -> str:
    return f"in database {identifier(database)}"
