"""What our login may not do: looked up first, then tried with a user in a transaction that is rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from broker.engines.protocol import Lack
from broker.model import Terms
from broker_postgresql import heirs, streaming
from broker_postgresql.failures import first_line, leaves_connection_usable
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session
from broker_postgresql.terms import options_of

_MAKE = "CREATEROLE"
_OF_TERMS = "terms"


async def preflight(session: Session, terms: Sequence[Terms], name: str, standbys: Collection[str]) -> list[Lack]:
    """What is missing for users of these terms; `name` is nobody's yet, `standbys` are those that the connection names."""
    groups, keepers = _named(terms)
    lacks = {row["need"]: _lack(row) for row in await session.rows(QUERIES["preflight"], groups, keepers)}
    absent = {need.partition(": ")[2] for need in lacks if need.startswith("group exists: ")}
    tried = list(_steps(session, name, [group for group in groups if group not in absent], _present(keepers, lacks)))
    for need, reason in (await _rehearsed(session, tried)).items():
        looked_up = lacks.get(need, Lack(need=need))
        lacks[need] = Lack(need=need, remedy=looked_up.remedy, reason=reason, fatal=need == _MAKE)
    return [*lacks.values(), *await heirs.lacking(session, terms), *await streaming.unnamed(session, standbys)]


async def lacking(session: Session, terms: Terms) -> list[Lack]:
    """What is missing for these terms beside what every connection needs."""
    rows = await session.rows(QUERIES["preflight"], *_named([terms]))
    return [_lack(row) for row in rows if row["kind"] == _OF_TERMS]


@asynccontextmanager
async def rolled_back(session: Session) -> AsyncIterator[None]:
    """A transaction for the block, of which nothing stays."""
    await session.run("BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '5s'")
    try:
        yield
    except BaseException as error:
        # After anything else the connection is given up, and the server rolls back: one that hangs would never answer.
        if leaves_connection_usable(error) and not session.wire.is_closed():
            await session.run("ROLLBACK")
        raise
    await session.run("ROLLBACK")


async def attempt(session: Session, statements: str) -> asyncpg.PostgresError | None:
    """The error of statements that are undone where they fail, alone; inside a transaction."""
    try:
        await session.run("SAVEPOINT rehearsed")
        await session.run(statements)
    except asyncpg.PostgresError as error:
        if not leaves_connection_usable(error):
            raise
        await session.run("ROLLBACK TO SAVEPOINT rehearsed")
        return error
    return None


def _named(terms: Sequence[Terms]) -> tuple[list[str], list[str]]:
    """The groups and the heirs that terms name."""
    options = [options_of(each) for each in terms]
    groups = {group for each in options for group in each.grant_roles}
    return sorted(groups), sorted({each.reassign_to for each in options if each.reassign_to})


def _lack(row: asyncpg.Record) -> Lack:
    return Lack(need=row["need"], remedy=row["fix"], fatal=row["need"] == _MAKE)


def _present(heirs: Sequence[str], lacks: dict[str, Lack]) -> list[str]:
    return [heir for heir in heirs if f"hand over to: {heir}" not in lacks]


def _steps(session: Session, name: str, groups: Sequence[str], heirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    user = identifier(name)
    yield _MAKE, f"CREATE ROLE {user} NOLOGIN"
    yield "mark users as the broker's", f"COMMENT ON ROLE {user} IS 'broker: rehearsal'"
    yield "set when users expire", f"ALTER ROLE {user} VALID UNTIL 'infinity'"
    for group in groups:
        yield f"grant group: {group}", f"GRANT {identifier(group)} TO {user}"
    yield "turn logins on", f"ALTER ROLE {user} LOGIN"
    yield "turn logins off", f"ALTER ROLE {user} NOLOGIN"
    if not session.greeting.superuser:
        yield "become a member of users", f"GRANT {user} TO CURRENT_USER"
    for heir in heirs:
        yield f"hand over to: {heir}", f"REASSIGN OWNED BY {user} TO {identifier(heir)}"
    yield "take away what users were granted", f"DROP OWNED BY {user}"
    yield "drop users", f"DROP ROLE {user}"


async def _rehearsed(session: Session, steps: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What failed and why; where no user can be made, nothing else is tried."""
    failed: dict[str, str] = {}
    async with rolled_back(session):
        for need, statement in steps:
            error = await attempt(session, statement)
            if error is not None:
                failed[need] = f"{first_line(error)} (SQLSTATE {error.sqlstate})"
            if _MAKE in failed:
                break
    return failed
