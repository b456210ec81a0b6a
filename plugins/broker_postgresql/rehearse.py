"""A role's statements, tried on a user in a transaction that is rolled back; what fails is told by its place.

They run inside a block, where the server refuses COMMIT and its kind. What they are given as the password is a text that says so, always
the same one and nobody's: it goes to the server unveiled, and may stand in its log and statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from broker.engines.protocol import NewUser, Password, Rehearsal, User
from broker.engines.statements import expiration, place
from broker.errors import EngineError, InstructionsFailed
from broker.model import Terms
from broker.secret import Secret
from broker_postgresql import heirs, lasting, offspring, schemas
from broker_postgresql.commands import commands
from broker_postgresql.creation import CAN_LOGIN, creation, filled
from broker_postgresql.creators import Creators
from broker_postgresql.failures import first_line, is_transient
from broker_postgresql.orders import Order
from broker_postgresql.preflight import attempt, lacking, rolled_back
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, literal
from broker_postgresql.session import NOTHING_GRANTED, NOTHING_REVOKED, Session
from broker_postgresql.terms import options_of

PASSWORD = "Rehearsal-n0t-a-password"
"""As long as a real one, with letters of both kinds, a digit and a dash: what a server asks of passwords (`passwordcheck`), it has."""
VERIFIER = (
    "SCRAM-SHA-256$4096:a+rehearsal+is+nothing==$a+rehearsal+no+password+that+opens+any+lock="
    ":a+rehearsal+no+password+that+opens+any+lock="
)
"""The server takes it for a verifier, and there is no password to it: its keys are no hash of anything known."""
_RUN = "DO $broker$ BEGIN EXECUTE pg_catalog.current_setting('broker.rehearsed'); END $broker$"
_NOT_SUPPORTED, _TRANSACTIONS = "0A000", "transaction command"
"""How the server refuses COMMIT and its like inside of our block; it speaks of EXECUTE, which nobody wrote."""
_HAND_OVER = "SELECT pg_catalog.set_config('broker.rehearsed', $1, true)"
_DENIED = "42501"
_KEPT = (
    "creation_statements: users of this role would own something from the start, and owned_objects does not say what becomes of it:"
    " no lease could end by itself, each would stay without login until somebody decides"
)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a text failed: the error of the server, or what it granted less than was said."""

    text: str
    sqlstate: str = ""
    offset: int | None = None
    """Where in the text, from 0, if the server said so."""


async def rehearse(session: Session, creators: Creators, user: User, at_ms: int, password: str) -> Rehearsal:
    """See `Engine.rehearse`; `user` is made, and expires at `at_ms` by the server's clock.

    `password` is what stands for one: `VERIFIER` where real users' verifiers are sent, else `PASSWORD`.
    """
    terms, order = user.terms, NewUser(user=user, password=Password(text=Secret(password)), lifetime_ms=0)
    values = {"name": user.name, "username": user.name, "expiration": expiration(at_ms)}
    made = creation(order, CAN_LOGIN, at_ms, values["expiration"], password)
    warnings = [f"{lack.need}: {lack.remedy}" for lack in await lacking(session, terms)]
    try:
        removable, doubts = await _tried(session, made, order, values)
    except InstructionsFailed as error:
        missing = await creators.lacking(session, terms) if _DENIED in str(error) else ()
        raise InstructionsFailed(f"{error}. What may be missing: {'; '.join(missing)}") if missing else error from None
    return Rehearsal(warnings=[*warnings, *doubts, *([] if removable else [_KEPT])], removable=removable)


async def _tried(session: Session, made: Order, order: NewUser, values: dict[str, str]) -> tuple[bool, list[str]]:
    """Whether the user could be removed again, and what is doubtful about it. Raises `InstructionsFailed`, `EngineError`."""
    user, terms = order.user, order.user.terms
    async with rolled_back(session):
        if made.statements:
            await _own(session, "creation_statements", terms.creation, values | {"password": made.secret})
            await _check_made(session, user.name)
        error = await attempt(session, made.ours)
        if error is not None:
            raise _ours_failed(error)
        oid = await _oid(session, user.name)
        await offspring.refuse(session, oid)
        removable = await _removable(session, terms, oid)
        doubts = [*await heirs.doubts(session, user.name, oid, terms), *await lasting.doubts(session, oid)]
        await _own(session, "renew_statements", terms.renewal, values)
        await _join(session, user.name)
        await _own(session, "revocation_statements", terms.revocation, {"name": user.name, "username": user.name})
    return removable, doubts


async def _own(session: Session, field: str, statements: Sequence[str], values: dict[str, str]) -> None:
    """Runs statements of the role as they will be run, all together. Raises `InstructionsFailed` with the place of what failed."""
    if not statements:
        return
    text = filled(statements, **values)
    found_in = schemas.OPEN if schemas.calls_nothing(text) or await schemas.version(session) else schemas.CLOSED
    await session.run(f"SET LOCAL search_path = {found_in}; SAVEPOINT whole")
    failure = await _try(session, text)
    if failure is not None:
        await session.run("ROLLBACK TO SAVEPOINT whole")
        if is_transient(failure.sqlstate):
            raise EngineError(f"{field}: {failure.text}")
        where, found = await _located(session, statements, values) or ("", failure)
        raise InstructionsFailed(f"{field}{where}: {found.text}")
    await session.run(f"SET LOCAL search_path = {schemas.CLOSED}")


async def _located(session: Session, statements: Sequence[str], values: dict[str, str]) -> tuple[str, _Failure] | None:
    """The first command that fails when each is run alone, after the others; None where all of them work then."""
    for number, statement in enumerate(statements, 1):
        for start, command in commands(filled([statement], **values)):
            failure = await _try(session, command)
            if failure is not None:
                line, column = place(statement, start + (failure.offset or 0), **values)
                return f", statement {number}, line {line}, column {column}", failure
    return None


async def _try(session: Session, text: str) -> _Failure | None:
    await session.rows(_HAND_OVER, text)
    error = await attempt(session, _RUN)
    if error is None:
        denied = [notice.message for notice in session.notices if notice.sqlstate in (NOTHING_GRANTED, NOTHING_REVOKED)]
        return _Failure(f"granted less than it says: {'; '.join(denied)}") if denied else None
    at = getattr(error, "internal_position", None)
    # A function that the text calls has texts of its own.
    offset = int(at) - 1 if at and getattr(error, "internal_query", None) == text else None
    text = first_line(error)
    if error.sqlstate == _NOT_SUPPORTED and _TRANSACTIONS in text:
        text = "statements may not begin, end or divide transactions: all of them run in one"
    text += schemas.hint(session, error.sqlstate or "")
    return _Failure(f"{text} (SQLSTATE {error.sqlstate})", error.sqlstate or "", offset)


async def _check_made(session: Session, name: str) -> None:
    query = "SELECT current_user = session_user AS same, pg_catalog.to_regrole($1) IS NOT NULL AS made"
    [row] = await session.rows(query, identifier(name))
    if not row["same"]:
        raise InstructionsFailed("creation_statements: they left another role set; end them with RESET ROLE")
    if not row["made"]:
        raise InstructionsFailed("creation_statements: they made no role of the name in {{name}}")


async def _removable(session: Session, terms: Terms, oid: int) -> bool:
    """Whether the user owns nothing that its role would keep."""
    if terms.revocation or options_of(terms).owned_objects != "contain":
        return True
    return not any(row["owned"] for row in await session.rows(QUERIES["dependencies"], [oid]))


async def _oid(session: Session, name: str) -> int:
    [[oid]] = await session.rows(f"SELECT pg_catalog.to_regrole({literal(identifier(name))})::oid")
    return int(oid)


async def _join(session: Session, name: str) -> None:
    """As a revocation does; where that is refused, what needs it says so."""
    if not session.greeting.superuser:
        options = " WITH INHERIT TRUE, SET TRUE" if session.greeting.inherits_by_grant else ""
        await attempt(session, f"GRANT {identifier(name)} TO CURRENT_USER{options}")


def _ours_failed(error: asyncpg.PostgresError) -> EngineError:
    """The error of what is set beside the role's statements."""
    text = f"grant_roles, connection_limit, settings: {first_line(error)} (SQLSTATE {error.sqlstate})"
    return EngineError(text) if is_transient(error.sqlstate) else InstructionsFailed(text)
