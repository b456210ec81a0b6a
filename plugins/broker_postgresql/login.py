"""Turning logins on and moving their expiry: the hot path. One string, one round trip, one transaction for a whole batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import asyncpg

from broker.engines.protocol import Extension, Outcome
from broker.engines.statements import expiration
from broker.errors import DatabaseUnavailable, EngineError, InstructionsFailed, UserMissing
from broker.secret import random_below
from broker_postgresql.creation import filled
from broker_postgresql.failures import is_transient, leaves_connection_usable, translated
from broker_postgresql.identity import oid_of
from broker_postgresql.issue import GRACE_MS
from broker_postgresql.lanes import Lane
from broker_postgresql.orders import MISSING, Done, Order, run_orders
from broker_postgresql.quoting import identifier, literal, moment
from broker_postgresql.session import Session

_NO_SUCH_ROLE = "42704"
_ATTEMPTS = 4
_PAUSE_MS = 25


async def enable(lane: Lane, extensions: Sequence[Extension], now_ms: int) -> list[Outcome]:
    """Lets the users log in until their lifetime has passed since `now_ms` by the server's clock."""
    return await _alter(lane, extensions, lambda extension: _alteration(extension, now_ms, "LOGIN "))


async def extend(lane: Lane, extensions: Sequence[Extension], now_ms: int) -> list[Outcome]:
    """Moves the users' expiry to their lifetime after `now_ms`; runs the renewal statements of those that have some."""
    plain = [extension for extension in extensions if not extension.user.terms.renewal]
    outcomes = await _alter(lane, plain, lambda extension: _alteration(extension, now_ms, ""))
    for extension in extensions:
        if extension.user.terms.renewal:
            outcomes.append(await _renew(lane, extension, now_ms))
    return outcomes


async def _alter(lane: Lane, extensions: Sequence[Extension], alteration: Callable[[Extension], str]) -> list[Outcome]:
    """All in one go; where that fails, each alone, so that one bad user fails by itself."""
    if not extensions:
        return []
    try:
        async with lane.session() as session:
            try:
                await session.run(_checked(extensions, alteration))
            except asyncpg.PostgresError as error:
                if not leaves_connection_usable(error):
                    raise
                return [await _alter_one(session, extension, alteration) for extension in extensions]
            return [Outcome(extension.user.number, None, extension.user.identity) for extension in extensions]
    except EngineError as error:
        return [Outcome(extension.user.number, error, extension.user.identity) for extension in extensions]


async def _alter_one(session: Session, extension: Extension, alteration: Callable[[Extension], str]) -> Outcome:
    number, identity = extension.user.number, extension.user.identity
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await session.run(_checked([extension], alteration))
        except asyncpg.PostgresError as error:
            if error.sqlstate in (MISSING, _NO_SUCH_ROLE):
                return Outcome(number, UserMissing(), identity)
            if not leaves_connection_usable(error):
                raise
            if not is_transient(error.sqlstate):
                return Outcome(number, translated(error, "the login was not changed"), identity)
            await asyncio.sleep(random_below(_PAUSE_MS * attempt) / 1000)
        else:
            return Outcome(number, None, identity)
    return Outcome(number, DatabaseUnavailable("the user's role is being changed by others; try again"), identity)


def _checked(extensions: Sequence[Extension], alteration: Callable[[Extension], str]) -> str:
    """The alterations, after a check that each name is still the very role of its lease; nothing is done when one is not."""
    strangers = " OR ".join(
        f"pg_get_userbyid({oid_of(extension.user)}) <> {literal(extension.user.name)}" for extension in extensions
    )
    check = f"BEGIN IF {strangers} THEN RAISE EXCEPTION USING ERRCODE = '{MISSING}'; END IF; END"
    return f"DO {literal(check)};" + ";".join(alteration(extension) for extension in extensions)


def _alteration(extension: Extension, now_ms: int, login: str) -> str:
    until = moment(now_ms + extension.lifetime_ms + GRACE_MS)
    return f"ALTER ROLE {identifier(extension.user.name)} {login}VALID UNTIL {until}"


async def _renew(lane: Lane, extension: Extension, now_ms: int) -> Outcome:
    user = extension.user
    expires = expiration(now_ms + extension.lifetime_ms + GRACE_MS)
    try:
        statements = filled(user.terms.renewal, name=user.name, username=user.name, expiration=expires)
        ours = _alteration(extension, now_ms, "")
        order = Order(name=user.name, oid=oid_of(user), statements=statements, ours=ours)
        async with lane.session() as session:
            [done] = await run_orders(session, [order], serial=False)
    except EngineError as error:
        return Outcome(user.number, error, user.identity)
    return Outcome(user.number, _renewal_error(done), user.identity)


def _renewal_error(done: Done) -> EngineError | None:
    if done.sqlstate == MISSING:
        return UserMissing()
    if done.warnings or done.sqlstate:
        return InstructionsFailed(f"renew_statements failed: {done.message or '; '.join(done.warnings)}")
    return None
