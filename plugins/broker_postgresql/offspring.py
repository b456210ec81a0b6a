"""Roles that a leased user made: logins that would outlive it.

Nothing contains a user with CREATEROLE. Up to PostgreSQL 15 the server does not keep who made a role; later it does, as a membership of
the maker, yet a user that makes a role which makes another one, and drops the first, leaves a login without a trace. So a role whose users
could make roles is refused when it is rehearsed. One that was kept untried, or users that were given the right later, are held after they
lost login and sessions, until somebody has looked: what the server knows of is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from broker.engines.protocol import Outcome, User
from broker.errors import InstructionsFailed, UserRemains
from broker_postgresql.identity import oid_of, ours
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_NAMED_AT_MOST = 5
_HELD = (
    "the user could make roles ({able}), and logins that it made would outlive it; {known}. It is kept without login until that is"
    " settled"
)
_KNOWN = "the server knows of {made}, and may not know of all"
_UNKNOWN = "the server knows of none, but does not keep who made each role"
_REFUSED = (
    "creation_statements, grant_roles: a user could make roles ({able}), and logins that it makes would outlive its lease without a trace."
    " Have such work done by a login that is not leased"
)


class Able(Struct, frozen=True):
    """A user that could make roles."""

    oid: int
    able: Sequence[str]
    """As which roles, itself among them."""
    made: Sequence[str]
    """Roles that it made, and that those made, as far as the server knows."""
    remedy: Sequence[str]
    """Statements that take login and sessions from these, and the right from the user."""


async def find(session: Session, oids: Sequence[int]) -> list[Able]:
    """Which of these roles could make others, by an attribute of their own or of a role that they could become."""
    if not oids or not (await session.rows(QUERIES["anybody_able"], oids))[0]["able"]:
        return []
    return [Able(**row) for row in await session.rows(QUERIES["able_to_make_roles"], oids)]


async def refuse(session: Session, oid: int) -> None:
    """Raises `InstructionsFailed` where a user, just made to try its role, could make roles."""
    for one in await find(session, [oid]):
        raise InstructionsFailed(_REFUSED.format(able=_named(one.able)))


async def held(session: Session, users: Sequence[User]) -> list[Outcome]:
    """Failures of those users that could make roles until now, and are not to be dropped; their sessions must have been ended before.

    One query where there are none.
    """
    known = [oid for user in users if (oid := oid_of(user))]
    if len(known) == len(users) and not await find(session, known):
        return []
    present = {one.oid: one.user.number for one in await ours(session, users)}
    return [Outcome(present[one.oid], _error(one), str(one.oid)) for one in await find(session, list(present))]


def _error(one: Able) -> UserRemains:
    known = _KNOWN.format(made=_named(one.made)) if one.made else _UNKNOWN
    return UserRemains(_HELD.format(able=_named(one.able), known=known), remedy=one.remedy)


def _named(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _NAMED_AT_MOST} more"] if len(names) > _NAMED_AT_MOST else []
    return ", ".join([*names[:_NAMED_AT_MOST], *more])
