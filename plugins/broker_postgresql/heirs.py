"""What keeps the heir that a role names from getting what its users leave: told when the role is written, and where a user is stuck on it.

A superuser's login hands anything over to anybody. For any other the server asks that the heir itself may create in the schema (PostgreSQL
manual, "ALTER FUNCTION" and its like); of REASSIGN OWNED it does not ask this for tables, of what has thousands of them moved it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.engines.protocol import Lack
from broker.model import Terms
from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier
from broker_postgresql.session import Session
from broker_postgresql.terms import options_of

_FOR_WANT_OF_RIGHTS = frozenset({"42501", "53200"})
"""Refused; or out of locks, since the slices were refused and then all was tried in one statement."""
_STAYS = "a user that owns {what} when its lease ends stays, without login, until somebody decides"
_RIGHTS = (
    "reassign_to: users could not act as {heir} itself, and {heir} has rights of its own: {rights}. Nothing is handed over to it: "
    + _STAYS.format(what="anything")
    + ". Let them join {heir} (grant_roles), or name an heir without rights"
)
_CLOSED = (
    "reassign_to: users may create in schema {schema}, and {heir} may not: "
    + _STAYS.format(what="a function, a type's operator and the like there, or tables by the hundred,")
    + ". In database {database}: {statement}"
)


async def doubts(session: Session, name: str, oid: int, terms: Terms) -> list[str]:
    """Why what a user of these terms owns could not be handed over, in sentences; the user is there."""
    heir = options_of(terms).reassign_to
    answers = await session.rows(QUERIES["heir"], oid, heir) if heir else []
    if not answers:
        return []
    if answers[0]["rights"] and not answers[0]["within_reach"]:
        return [_RIGHTS.format(heir=heir, rights=", ".join(answers[0]["rights"]))]
    return [
        _CLOSED.format(schema=row["schema"], heir=heir, database=session.greeting.database, statement=row["statement"])
        for row in await _closed(session, [name], heir)
        if row["creates"]
    ]


async def lacking(session: Session, terms: Sequence[Terms]) -> list[Lack]:
    """The schemas in which group roles of these terms may create and the heir may not."""
    options = [options_of(each) for each in terms]
    pairs = sorted({(each.reassign_to, tuple(each.grant_roles)) for each in options if each.reassign_to})
    found = {
        f"hand over in schema {row['schema']} to: {heir}": row["statement"]
        for heir, groups in pairs
        for row in await _closed(session, groups, heir)
        if row["creates"]
    }
    return [Lack(need=need, remedy=statement) for need, statement in found.items()]


async def way_out(session: Session, one: Present, error: asyncpg.PostgresError) -> tuple[str, ...]:
    """Statements for an administrator after which what failed so can be handed over; none where it is for another reason."""
    return await grants(session, one) if error.sqlstate in _FOR_WANT_OF_RIGHTS else ()


async def grants(session: Session, one: Present) -> tuple[str, ...]:
    """Statements that let the user's heir have what it owns in schemas of the session's database; none where there is no heir."""
    if not (heir := options_of(one.user.terms).reassign_to):
        return ()
    where = comment(f"in database {identifier(session.greeting.database)}")
    return tuple(f"{where} {row['statement']};" for row in await _closed(session, [one.name], heir) if row["holds"])


async def _closed(session: Session, names: Sequence[str], heir: str) -> Sequence[asyncpg.Record]:
    return [] if session.greeting.superuser else await session.rows(QUERIES["closed_schemas"], names, heir)
