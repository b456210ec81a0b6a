"""To whom a user's objects may go.

Handing over is an escalation: a view on a table that the user could not read, a SECURITY DEFINER function, a trigger that a foreign
key fires, an index over a function: all of these run with the rights of whoever owns them next, for everybody who may use them.
So objects go only to an heir that the user could have become by SET ROLE, or to one without rights of its own. The latter may own
what others left, hence no code goes there: it is dropped before, or the user is kept, as its role says. Nor may others tie code to
what goes there: the look-up of a foreign key runs as the owner of the table that it refers to. What was left says so in its comment: an
heir that owns anything else may do something with it, and is none without rights.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.errors import UserRemains
from broker_postgresql import bulk, dependencies, ties
from broker_postgresql.bulk import Pace
from broker_postgresql.failures import first_line
from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier
from broker_postgresql.session import Session
from broker_postgresql.terms import RoleOptions

_NAMED_AT_MOST = 5
_CODE_AT_ONCE = 500
_RIGHTS = (
    "the user could not act as {heir} itself, and {heir} has rights of its own: {rights}. Let the role's users join {heir}, or name"
    " an heir without rights"
)
_CODE = (
    "the user could not act as {heir} itself and owns code that would then run with the rights of {heir}: {code}. Drop it (the role"
    " may say so: owned_code), or let the role's users join {heir}"
)
_UNFIT = "rights of others on the user's tables can't be revoked, or what it leaves not be told by a comment, before it is handed over"
_TIED = "an open transaction ties a foreign key or a trigger to {tables}, which is not handed over before that has ended"


async def prepare(session: Session, one: Present, options: RoleOptions, pace: Pace) -> str:
    """Makes what the user owns in the session's database fit to be handed over, and answers the heir as a quoted name.

    Raises `UserRemains` where there is no such heir, or handing over would give the user's code rights that it did not have.
    """
    heir = options.reassign_to
    answers = await session.rows(QUERIES["heir"], one.oid, heir)
    if not answers:
        raise UserRemains(f"reassign_to: there is no role {heir}", remedy=(f"CREATE ROLE {identifier(heir)} NOLOGIN",))
    [answer] = answers
    if answer["within_reach"]:
        return identifier(heir)
    if answer["rights"]:
        raise UserRemains(_RIGHTS.format(heir=heir, rights=", ".join(answer["rights"])), remedy=await _by_hand(session, one))
    await _untie(session, one, pace)
    while code := await session.rows(QUERIES["owned_code"], one.oid, _CODE_AT_ONCE):
        text = _CODE.format(heir=heir, code=_named([row["object"] for row in code]))
        if options.owned_code == "contain":
            raise UserRemains(text, remedy=(*await _untied(session, one), *_statements(session, code)))
        await ties.cut(session, one.oid, pace)
        await _drop(session, one, code, text, pace)
    return identifier(heir)


async def _untie(session: Session, one: Present, pace: Pace) -> None:
    """From here on nobody else can tie anything to the user's tables; what was tied before can be seen."""
    unfit = [*await _settle(session, one, "unsaid", pace), *await _settle(session, one, "lent", pace)]
    # Looked for only now: whoever asks for such a lock later finds the right gone, and who had it before has committed.
    if tied := await session.rows(QUERIES["being_tied"], one.oid):
        raise UserRemains(_TIED.format(tables=_named([row["object"] for row in tied])))
    if unfit:
        raise UserRemains(_UNFIT, remedy=_statements(session, unfit))


async def _settle(session: Session, one: Present, query: str, pace: Pace) -> Sequence[asyncpg.Record]:
    """Runs the statements that a query yields, and answers those that it still yields then."""
    await bulk.run_each(session, query, one.oid, pace)
    return await session.rows(QUERIES[query], one.oid, _CODE_AT_ONCE)


async def _drop(session: Session, one: Present, code: Sequence[asyncpg.Record], text: str, pace: Pace) -> None:
    before = pace.done
    error = await bulk.run_all(session, [row["statement"] for row in code if row["statement"] and row["ours"]], pace)
    if pace.done == before:
        why = f"; {first_line(error)}" if error else ""
        raise UserRemains(f"{text}{why}", remedy=(*await _untied(session, one), *_statements(session, code)))


async def _untied(session: Session, one: Present) -> tuple[str, ...]:
    """What takes the code off others' tables, without which it can't be dropped."""
    return tuple(f"{_where(session)} {tie};" for tie in (await ties.find(session, [one.oid])).get(one.oid, ()))


def _named(objects: Sequence[str]) -> str:
    more = [f"and {len(objects) - _NAMED_AT_MOST} more"] if len(objects) > _NAMED_AT_MOST else []
    return ", ".join([*objects[:_NAMED_AT_MOST], *more])


def _statements(session: Session, code: Sequence[asyncpg.Record]) -> tuple[str, ...]:
    """What takes the code away; nothing else does where a column's type or a partition's key is to blame."""
    return tuple(f"{_where(session)} {row['statement']};" for row in code if row["statement"])


async def _by_hand(session: Session, one: Present) -> tuple[str, ...]:
    here = session.greeting.database
    found = [each for each in await dependencies.find(session, [one]) if each.database in ("", here)]
    return dependencies.remedies(one, found, here)


def _where(session: Session) -> str:
    return comment(f"in database {identifier(session.greeting.database)}")
