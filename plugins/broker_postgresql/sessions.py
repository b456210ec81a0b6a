"""Ending users' sessions, by OID: the login role of a session stays visible through SET ROLE and after the role is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from broker.clock import stopwatch_s
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

LIMIT_S = 5.0
_PAUSES_S = (0.005, 0.01, 0.02, 0.05)
_LONG_PAUSE_S = 0.1
_SIGNAL_AGAIN_S = 1.0


async def tell(session: Session, oids: Sequence[int]) -> bool:
    """Tells all sessions of these OIDs to end, without waiting; whether the server let us."""
    try:
        await session.rows(QUERIES["terminate_sessions"], oids)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


async def end(session: Session, oids: Sequence[int], limit_s: float = LIMIT_S) -> dict[int, int]:
    """Ends all sessions of these OIDs and waits until they are seen gone; answers how many remain after `limit_s`, by OID.

    Never touches another role's sessions. Nothing is signalled where nothing is found.
    """
    deadline, signalled_s, turn = stopwatch_s() + limit_s, float("-inf"), 0
    while remaining := await _count(session, oids):
        if stopwatch_s() > deadline:
            return remaining
        if stopwatch_s() - signalled_s > _SIGNAL_AGAIN_S:
            signalled_s = stopwatch_s()
            # Without its time-out argument it does not wait, pid by pid.
            if not await tell(session, list(remaining)):
                return remaining
        await asyncio.sleep(_PAUSES_S[turn] if turn < len(_PAUSES_S) else _LONG_PAUSE_S)
        turn += 1
    return {}


async def _count(session: Session, oids: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for row in await session.rows(QUERIES["sessions"], oids):
        found[row["oid"]] = found.get(row["oid"], 0) + 1
    return found
