"""Turning logins on and moving their expiry: the hot path. One string, one round trip, one transaction for a whole batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import asyncpg

from broker.engines.protocol import Extension, Outcome, User
from broker.engines.statements import expiration
from broker.errors import DatabaseUnavailable, EngineError, InstructionsFailed, UserMissing
from broker.secret import random_below
from broker_postgresql.creation import filled
from broker_postgresql.creators import Creators, remedy
from broker_postgresql.failures import is_transient, leaves_connection_usable, translated
from broker_postgresql.identity import oid_of
from broker_postgresql.issue import GRACE_MS, lacks_rights
from broker_postgresql.lanes import Lane
from broker_postgresql.orders import MISSING, Done, Order, run_orders
from broker_postgresql.quoting import identifier, literal, moment
from broker_postgresql.session import Session

_NO_SUCH_ROLE = "42704"
_ATTEMPTS = 4
_PAUSE_MS = 25


async def enable(lane: Lane, creators: Creators, extensions: Sequence[Extension], now_ms: int) -> list[Outcome]:
    """Lets the users log in until their lifetime has passed since `now_ms` by the server's clock."""
    return await _alter(lane, creators, extensions, lambda extension: _alteration(extension, now_ms, "LOGIN "))


async def extend(lane: Lane, creators: Creators, extensions: Sequence[Extension], now_ms: int) -> list[Outcome]:
    """Moves the users' expiry to their lifetime after `now_ms`; runs the renewal statements of those that have some."""
    plain = [extension for extension in extensions if not extension.user.terms.renewal]
    outcomes = await _alter(lane, creators, plain, lambda extension: _alteration(extension, now_ms, ""))
    for extension in extensions:
        if extension.user.terms.renewal:
            outcomes.append(await _renew(lane, creators, extension, now_ms))
    return outcomes


async def _alter(
    lane: Lane, creators: Creators, extensions: Sequence[Extension], alteration: Callable[[Extension], str]
) -> list[Outcome]:
    """All in one go; where that fails, each alone, so that one bad user fails by itself."""
    if not extensions:
        return []
    oids = [oid_of(extension.user) for extension in extensions]
    try:
        async with lane.pinned() as session:
            try:
                await session.run_as(_parts(session, extensions, await creators.makers(session, oids), alteration))
            except asyncpg.PostgresError as error:
                if not leaves_connection_usable(error):
                    raise
                creators.forget(oids)
                makers = await creators.makers(session, oids)
                return [await _alter_one(session, extension, makers, alteration) for extension in extensions]
            return [Outcome(extension.user.number, None, extension.user.identity) for extension in extensions]
    except EngineError as error:
        return [Outcome(extension.user.number, error, extension.user.identity) for extension in extensions]


async def _alter_one(
    session: Session, extension: Extension, makers: Mapping[int, str], alteration: Callable[[Extension], str]
) -> Outcome:
    user = extension.user
    number, identity = user.number, user.identity
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await session.run_as(_parts(session, [extension], makers, alteration))
        except asyncpg.PostgresError as error:
            if error.sqlstate in (MISSING, _NO_SUCH_ROLE):
                return Outcome(number, UserMissing(), identity)
            if not leaves_connection_usable(error):
                raise
            if not is_transient(error.sqlstate):
                return Outcome(number, await _refusal(session, error, user, makers), identity)
            await asyncio.sleep(random_below(_PAUSE_MS * attempt) / 1000)
        else:
            return Outcome(number, None, identity)
    return Outcome(number, DatabaseUnavailable("the user's role is being changed by others; try again"), identity)


async def _refusal(session: Session, error: asyncpg.PostgresError, user: User, makers: Mapping[int, str]) -> EngineError:
    told = translated(error, "the login was not changed")
    if not session.greeting.spreads or not isinstance(error, asyncpg.InsufficientPrivilegeError):
        return told
    return EngineError(f"{told}; {'; '.join(await remedy(session, user.name, makers.get(oid_of(user), '')))}")


def _parts(
    session: Session, extensions: Sequence[Extension], makers: Mapping[int, str], alteration: Callable[[Extension], str]
) -> list[tuple[str, str]]:
    """The check and the alterations, each for whoever has to act; the role that is set already comes first."""
    by_maker: dict[str, list[str]] = {}
    for extension in extensions:
        by_maker.setdefault(makers.get(oid_of(extension.user), ""), []).append(alteration(extension))
    first = sorted(by_maker, key=lambda maker: maker != session.acting)
    return [(first[0], _check(extensions)), *((maker, ";".join(by_maker[maker])) for maker in first)]


def _check(extensions: Sequence[Extension]) -> str:
    """Makes sure that each name is still the very role of its lease; nothing is done when one is not."""
    strangers = " OR ".join(
        f"pg_get_userbyid({oid_of(extension.user)}) <> {literal(extension.user.name)}" for extension in extensions
    )
    check = f"BEGIN IF {strangers} THEN RAISE EXCEPTION USING ERRCODE = '{MISSING}'; END IF; END"
    return f"DO {literal(check)}"


def _alteration(extension: Extension, now_ms: int, login: str) -> str:
    until = moment(now_ms + extension.lifetime_ms + GRACE_MS)
    return f"ALTER ROLE {identifier(extension.user.name)} {login}VALID UNTIL {until}"


async def _renew(lane: Lane, creators: Creators, extension: Extension, now_ms: int) -> Outcome:
    """Runs the statements as the user's maker, and as our login where that has not the right."""
    user = extension.user
    expires = expiration(now_ms + extension.lifetime_ms + GRACE_MS)
    try:
        statements = filled(user.terms.renewal, name=user.name, username=user.name, expiration=expires)
        ours = _alteration(extension, now_ms, "")
        order = Order(name=user.name, oid=oid_of(user), statements=statements, ours=ours)
        async with lane.pinned() as session:
            makers = await creators.makers(session, [oid_of(user)])
            for maker in dict.fromkeys((makers.get(oid_of(user), ""), "")):
                await session.act_as(maker)
                [done] = await run_orders(session, [order])
                if not lacks_rights(done):
                    break
    except EngineError as error:
        return Outcome(user.number, error, user.identity)
    return Outcome(user.number, _renewal_error(done), user.identity)


def _renewal_error(done: Done) -> EngineError | None:
    if done.sqlstate == MISSING:
        return UserMissing()
    if done.warnings or done.sqlstate:
        return InstructionsFailed(f"renew_statements failed: {done.message or '; '.join(done.warnings)}")
    return None
