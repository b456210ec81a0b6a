"""Statements of many roles in one transaction, where becoming a role is dear.

SET ROLE walks through all that our login could become, which the server remembers until a membership changes; with 20,000 live users it
takes 5 ms to remember again. So one role after the other would pay for that whenever the one before dropped or granted something. A
function of ours sets all roles first, each in a call within the call of the one before. On the way out the server gives each call its role
back, without asking again, and only then the role's statements run.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_CALL = "pg_temp.broker_as_each($1::text[], $2::text[], 1)"
_OURSELVES = "none"


async def run_as_each(session: Session, texts: Mapping[str, str]) -> None:
    """Runs statements, by the role that is to act (empty: our login), all in one transaction; our login acts afterwards.

    The roles' turns come in any order. Where one fails, the server undoes all of them. Raises what the driver raises.
    """
    await session.act_as("")
    if any(texts) and await _kept(session):
        try:
            await session.rows(f"SELECT {_CALL}", [role or _OURSELVES for role in texts], list(texts.values()))
        except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
            # Somebody discarded it. No statement of ours calls another function, so nothing else can be meant.
            session.routines = None
        else:
            return
    await session.run_as(texts.items())
    await session.act_as("")


async def _kept(session: Session) -> bool:
    """Whether the connection keeps the function, made where it is missing; not where our login may make none."""
    if session.routines is not None and _CALL not in session.routines:
        try:
            await session.run(QUERIES["as_each"])
        except asyncpg.InsufficientPrivilegeError:
            session.routines = None
        else:
            session.routines.add(_CALL)
    return session.routines is not None
