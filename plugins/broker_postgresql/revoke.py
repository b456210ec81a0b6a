"""The stages of a revocation, each repeatable, each for many users at once; stage 3 is in `ownership`."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.clock import stopwatch_s
from broker.engines.protocol import Outcome, User
from broker.errors import EngineError, UserRemains
from broker_postgresql import creators, obstacles, sessions, stripped
from broker_postgresql import hidden as hidden_logins
from broker_postgresql.acting import run_as_each
from broker_postgresql.batch import Act, Patience, from_anywhere, in_halves, patiently
from broker_postgresql.failures import first_line, leaves_connection_usable
from broker_postgresql.hidden import Hidden
from broker_postgresql.identity import Present, Results, by_maker, ended_oids, oid_of, ours, with_makers
from broker_postgresql.membership import join
from broker_postgresql.ownership import remedies
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, identifiers
from broker_postgresql.session import Session

_BLOCKED_LIMIT_S = 2.0
_LOCKED_S = 3.0
"""How long `disable` waits in all, user by user, for locks that outlast the sessions: whoever is ordinary has gone by then."""
_STILL_OPEN = "sessions of the user are still open; they were told to end"
_HIDES = "a login of the user is still in progress; it was told to end"
_UNTOLD = "a login is in progress on the server that may be the user's, and the broker's login can't act as the user to end it"


async def disable(session: Session, users: Sequence[User]) -> list[Outcome]:
    """Takes the users' logins away."""
    results, present = Results(users), await ours(session, users)
    results.identified(present)
    foreign: set[int] = set()

    async def act(batch: Sequence[Present]) -> None:
        await run_as_each(session, {maker: _login_off(some) for maker, some in by_maker(batch).items()})

    async def fail(one: Present, error: asyncpg.PostgresError) -> None:
        if not _is_gone(error):
            missing = await _missing_grant(session, one, error)
            foreign.update([one.oid] if missing else [])
            remedy = missing or await obstacles.holders(session, one, error)
            results.fail(one.user, UserRemains(f"the login can't be turned off: {first_line(error)}", remedy=remedy))

    present = await with_makers(session, present)
    if not await _disabled_at_once(present, act):
        # A user can hold its own role's row locked in an open transaction. Their sessions are to go anyway: they go first.
        ending = [*(one for one in present if not one.user.spared), *await _in_the_way(present, act)]
        await join(session, ending)
        remaining = await sessions.end(session, [one.oid for one in ending], _BLOCKED_LIMIT_S)
        patience = Patience(_LOCKED_S)
        # Whoever goes on computing is likely to hold the locks, and comes last.
        await in_halves([one for one in ending if one.oid not in remaining], act, fail, patience)
        await in_halves([one for one in ending if one.oid in remaining], act, fail, patience)
        # Whoever is another login's to change is so in all respects, and one grant settles that.
        blocked = [one for one in present if results.failed(one.user) and one.oid not in foreign]
        kept = await stripped.strip(session, blocked, results)
        for one in blocked:
            if one.oid not in kept:
                results.note(one.user, stripped.note(one))
    return results.outcomes()


async def _in_the_way(present: Sequence[Present], act: Act) -> list[Present]:
    """Those of the users whose sessions may go on who can't have their login turned off so, or have no turn; the others' is off then."""
    patience = Patience(_LOCKED_S)
    spared = from_anywhere([one for one in present if one.user.spared])
    return [one for one in spared if await patiently([one], act, patience) is not None]


async def _disabled_at_once(present: Sequence[Present], act: Act) -> bool:
    try:
        if present:
            await act(present)
    except asyncpg.PostgresError as error:
        if not leaves_connection_usable(error):
            raise
        return False
    return True


async def end_sessions(session: Session, users: Sequence[User], hidden: Hidden) -> list[Outcome]:
    """Ends the users' sessions, and their logins in progress."""
    results, present = Results(users), await ours(session, users)
    results.identified(present)
    await _end_hidden(session, present, hidden, results)
    await _end(session, users, present, results)
    await stripped.strip(session, [one for one in present if results.failed(one.user)], results)
    return results.outcomes()


async def drop(session: Session, users: Sequence[User], hidden: Hidden) -> list[Outcome]:
    """Drops the users.

    Looks for hidden logins once more, since afterwards nobody could tell whose they are: one that was being checked when its login was
    turned off may have come to light since.
    """
    results, present = Results(users), await ours(session, users)
    results.identified(present)
    await _end_hidden(session, present, hidden, results)
    able = await with_makers(session, [one for one in present if not results.failed(one.user)])

    async def act(batch: Sequence[Present]) -> None:
        await run_as_each(session, {maker: _dropped(some) for maker, some in by_maker(batch).items()})

    async def fail(one: Present, error: asyncpg.PostgresError) -> None:
        if not _is_gone(error):
            remedy = await _missing_grant(session, one, error) or await obstacles.holders(session, one, error)
            remedy = remedy or (await remedies(session, [one])).get(one.oid, ())
            results.fail(one.user, UserRemains(f"the user can't be dropped: {first_line(error)}", remedy=remedy))

    await in_halves(able, act, fail)
    await stripped.strip(session, [one for one in present if results.failed(one.user)], results)
    return results.outcomes()


async def prove_absent(session: Session, users: Sequence[User]) -> list[Outcome]:
    """Looks for whatever could be left of the users. Late statements must have been settled before."""
    results, present = Results(users), await ours(session, users)
    results.identified(present)
    for one in present:
        results.fail(one.user, UserRemains("the user is still there"))
    await _end(session, users, present, results)
    pending = await session.rows(QUERIES["prepared_transactions"], [user.name for user in users])
    waiting = {row["owner"] for row in pending}
    for user in users:
        if user.name in waiting:
            results.fail(user, UserRemains("a prepared transaction of the user is still pending"))
    return results.outcomes()


async def _end_hidden(session: Session, present: Sequence[Present], hidden: Hidden, results: Results) -> None:
    oids = [one.oid for one in present]
    found = await hidden.end(session, oids)
    if found.untold:
        await join(session, [one for one in present if one.oid in found.untold])
        found = await hidden.end(session, oids)
    for one in present:
        if one.oid in found.going:
            results.fail(one.user, UserRemains(_HIDES))
        elif one.oid in found.untold:
            results.fail(one.user, UserRemains(_UNTOLD, remedy=await hidden_logins.remedy(session, one.oid)))


async def _end(session: Session, users: Sequence[User], present: Sequence[Present], results: Results) -> None:
    oids, begun_s = await ended_oids(session, users, present), stopwatch_s()
    remaining = await sessions.end(session, oids) if oids else {}
    if remaining and not session.greeting.superuser:
        # A plain login may end sessions of roles that it is a member of.
        await join(session, [one for one in present if one.oid in remaining])
        remaining = await sessions.end(session, list(remaining), begun_s + sessions.LIMIT_S - stopwatch_s())
    by_number, ours_or_nobodys = {one.user.number: one.oid for one in present}, frozenset(oids)
    for user in users:
        oid = by_number.get(user.number, oid_of(user))
        if oid in remaining:
            results.fail(user, await _still_open(session, oid))
        elif oid not in ours_or_nobodys:
            results.disowned(user)


async def _still_open(session: Session, oid: int) -> EngineError:
    if await sessions.tell(session, [oid]):
        return UserRemains(_STILL_OPEN, remedy=await obstacles.remaining(session, oid))
    remedy = f"GRANT pg_signal_backend TO {identifier(session.greeting.login)}"
    return UserRemains(f"{_STILL_OPEN}, as far as the broker's login may", remedy=(remedy,))


def _login_off(users: Sequence[Present]) -> str:
    return ";".join(f"ALTER ROLE {identifier(one.name)} NOLOGIN" for one in users)


def _dropped(users: Sequence[Present]) -> str:
    return f"DROP ROLE {identifiers([one.name for one in users])}"


async def _missing_grant(session: Session, one: Present, error: asyncpg.PostgresError) -> tuple[str, ...]:
    """The grant by which our login would come to have a right that it was refused; a root login that was changed lacks one."""
    if not session.greeting.spreads or not isinstance(error, asyncpg.InsufficientPrivilegeError):
        return ()
    return await creators.remedy(session, one.name, one.maker)


def _is_gone(error: asyncpg.PostgresError) -> bool:
    return isinstance(error, asyncpg.UndefinedObjectError)
