"""A user that can't be finished keeps no rights: none of its groups, and none of its own in the home database.

A login that can't be turned off, a session that can't be ended, a view or a SECURITY DEFINER function that PUBLIC may use and that nobody
dropped yet: each of them has what its user may do, for as long as that takes. A membership is behind none of the locks that hold up the
rest, so it goes at once. Only where something failed: who goes at the first attempt costs nothing more.

Two kinds stay, since what comes later is decided by them: those by which the user could become who is to have its objects
(`reassign_to`), and those by which it could make roles, which `offspring` holds it for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import asyncpg

from broker.clock import stopwatch_s
from broker.errors import EngineError, UserRemains
from broker_postgresql import bulk, passed_on
from broker_postgresql.acting import run_as_each
from broker_postgresql.batch import Patience, in_halves
from broker_postgresql.identity import Present, Results
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session
from broker_postgresql.terms import options_of

_NOTE = "its memberships were taken away"
_BUT_FOR = _NOTE + ", but for those by which it could become {heir}"
_LOCKED_S = 2.0
"""Who holds a lock on a group, or on what was granted, holds up these alone, and the batch as briefly."""
_AT_ONCE = 1_000


async def strip(session: Session, users: Sequence[Present], results: Results) -> set[int]:
    """Takes the users' memberships away, each as whoever may; what would take those that stay is added to the users' remedies.

    Answers the OIDs of users that keep some which they should not.
    """
    if not users:
        return set()
    await session.act_as("")
    rows = await session.rows(QUERIES["memberships"], [one.oid for one in users], [_heir(one) for one in users])
    by_user, kept = {one.oid: one for one in users}, set[int]()
    by_oid: dict[int, list[asyncpg.Record]] = {}
    for row in rows:
        by_oid.setdefault(row["oid"], []).append(row)

    async def act(batch: Sequence[Present]) -> None:
        texts: dict[str, list[str]] = {}
        for row in (row for one in batch for row in by_oid[one.oid] if row["actor"] is not None):
            texts.setdefault(row["actor"], []).append(row["statement"])
        if texts:
            await run_as_each(session, {actor: ";".join(each) for actor, each in texts.items()})

    async def fail(one: Present, _error: asyncpg.PostgresError) -> None:
        _tell(by_oid[one.oid])

    def _tell(some: Sequence[asyncpg.Record]) -> None:
        for row in some:
            kept.add(row["oid"])
            results.also(by_user[row["oid"]].user, (row["statement"],))

    for some in by_oid.values():
        _tell([row for row in some if row["actor"] is None])
    await in_halves([one for one in users if one.oid in by_oid], act, fail, Patience(_LOCKED_S))
    await _own_rights(session, users, results)
    return kept


async def _own_rights(session: Session, users: Sequence[Present], results: Results) -> None:
    """Takes away what was granted to the users themselves in the session's database, for as long as that may take.

    What our login may not revoke, DROP OWNED doesn't either, and is told where that was tried.
    """
    oids, pace, before = [one.oid for one in users], bulk.Pace(stopwatch_s() + _LOCKED_S), None
    while (rows := await session.rows(QUERIES["own_rights"], oids, _AT_ONCE)) and rows != before:
        if before is None:
            # Later it can't be done as the user.
            await passed_on.take_back(session, users, results)
        before = rows
        with contextlib.suppress(UserRemains):
            await bulk.run_all(session, [row["statement"] for row in rows], pace)


def note(one: Present) -> str:
    """What to say of a user that was stripped."""
    heir = _heir(one)
    return _BUT_FOR.format(heir=heir) if heir else _NOTE


def _heir(one: Present) -> str:
    try:
        return options_of(one.user.terms).reassign_to
    except EngineError:
        return ""
