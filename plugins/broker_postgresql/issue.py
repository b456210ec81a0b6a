"""Making users: on demand, able to log in; or ahead, unable to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import asyncpg

from broker.engines.protocol import NewUser, Outcome
from broker.engines.statements import expiration
from broker.errors import DatabaseUnavailable, EngineError, InstructionsFailed, UserNameTaken
from broker.secret import random_below
from broker_postgresql.admission import PLAIN
from broker_postgresql.creation import CAN_LOGIN, NO_LOGIN, creation
from broker_postgresql.creators import Creators
from broker_postgresql.failures import first_line, is_transient
from broker_postgresql.lanes import Lanes
from broker_postgresql.orders import ESCAPED, NOT_MADE, SUPERUSER, TAKEN, Done, Order, run_orders
from broker_postgresql.quoting import identifier
from broker_postgresql.scram import check_form
from broker_postgresql.session import Session

GRACE_MS = 5_000
"""The server's expiry stands this much later than the lease's, so that the broker is first (Vault's figure)."""
_ATTEMPTS = 5
_PAUSE_MS = 40
_NO_RIGHT = "42501"
_DENIED = ("42", "3F")
"""Refused, or not seen for want of USAGE on its schema."""
_DEFAULTS = re.compile(r"\bdefault\s+privileges\b", re.IGNORECASE)
"""Without FOR ROLE these are the defaults of whoever sets them, which is to be our login."""
_TOGETHER = 4
"""Users made ahead in one transaction. Few: it holds the lock on their group roles until all are hashed (8 ms each)."""


class Issuer:
    """Makes users over the general lane."""

    def __init__(self, lanes: Lanes, creators: Creators, server_now_ms: Callable[[], int], *, sends_verifier: bool) -> None:
        self._lanes = lanes
        self._creators = creators
        self._server_now_ms = server_now_ms
        self._sends_verifier = sends_verifier
        self._colliding: set[tuple[str, ...]] = set()
        """Creation statements that were seen to collide with themselves; from then on they run one at a time."""
        # No creator is made for a user that is only to show that the connection works.
        self._own: set[tuple[str, ...]] = {PLAIN.creation}
        """Creation statements that need what our login alone may do, such as grants on its tables; no creator is asked again."""

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        async with self._lanes.general.pinned() as session:
            [done] = await self._made(session, [order], [self._order(order, CAN_LOGIN)], CAN_LOGIN)
            error = await self._error_of(session, order, done)
            if error is not None:
                raise error
            return str(done.oid)

    async def prepare(self, orders: Sequence[NewUser]) -> list[Outcome]:
        """See `Engine.prepare`."""
        outcomes: list[Outcome] = []
        for start in range(0, len(orders), _TOGETHER):
            outcomes += await self._prepare_some(orders[start : start + _TOGETHER])
        return outcomes

    async def _prepare_some(self, orders: Sequence[NewUser]) -> list[Outcome]:
        built: list[tuple[NewUser, Order]] = []
        failed: list[Outcome] = []
        for order in orders:
            try:
                built.append((order, self._order(order, NO_LOGIN)))
            except EngineError as error:
                failed.append(Outcome(order.user.number, error))
        if not built:
            return failed
        try:
            async with self._lanes.general.pinned() as session:
                done = await self._made(session, [order for order, _ in built], [order for _, order in built], NO_LOGIN)
                errors = [await self._error_of(session, order, one) for (order, _), one in zip(built, done, strict=True)]
        except EngineError as error:
            return failed + [Outcome(order.user.number, error) for order, _ in built]
        return failed + [
            Outcome(order.user.number, error, str(one.oid or ""))
            for (order, _), one, error in zip(built, done, errors, strict=True)
        ]

    async def _made(self, session: Session, users: Sequence[NewUser], orders: Sequence[Order], occasion: str) -> list[Done]:
        """Runs the orders as a creator (see `creators`), and again as our login what a creator has no right to do."""
        maker = await self._act(session, users, occasion)
        try:
            done = await self._run(session, users, orders)
        except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
            # Somebody dropped or renamed the role that acts, and nothing was done.
            self._creators.forget()
            await session.act_as("")
            maker = await self._act(session, users, occasion)
            done = await self._run(session, users, orders)
        again = [place for place, one in enumerate(done) if maker and lacks_rights(one)]
        if occasion == NO_LOGIN:
            # They will be turned on soon, when no time is to be lost with asking who made them.
            self._creators.made(maker, [one.oid for one in done if one.oid])
        if not again:
            return done
        await session.act_as("")
        self._creators.forget()
        retried = await self._run(session, [users[place] for place in again], [orders[place] for place in again])
        for place, one in zip(again, retried, strict=True):
            done[place] = one
            if one.oid and not one.warnings:
                self._creators.made("", [one.oid])
                self._own.add(users[place].user.terms.creation)
        return done

    async def _act(self, session: Session, users: Sequence[NewUser], occasion: str) -> str:
        """Has a creator act for these users, and answers its name; empty where our login itself has to."""
        terms = [user.user.terms for user in users]
        if any(each.creation in self._own or _DEFAULTS.search(" ".join(each.creation)) for each in terms):
            await session.act_as("")
            return ""
        return await self._creators.act(session, occasion, terms)

    async def _run(self, session: Session, users: Sequence[NewUser], orders: Sequence[Order]) -> list[Done]:
        """Runs the orders; those that collided with others' are tried again, and those that granted nothing are undone."""
        texts = {user.user.terms.creation for user in users}
        async with nullcontext() if texts.isdisjoint(self._colliding) else self._lanes.turn():
            done = await run_orders(session, orders)
        for attempt in range(1, _ATTEMPTS):
            again = [place for place, one in enumerate(done) if is_transient(one.sqlstate)]
            if not again:
                break
            self._colliding.update(users[place].user.terms.creation for place in again)
            await asyncio.sleep(random_below(_PAUSE_MS * attempt) / 1000)
            async with self._lanes.turn():
                retried = await run_orders(session, [orders[place] for place in again])
            for place, one in zip(again, retried, strict=True):
                done[place] = one
        for order, one in zip(orders, done, strict=True):
            if one.oid and one.warnings:
                await _undo(session, order.name)
        return done

    async def _error_of(self, session: Session, order: NewUser, done: Done) -> EngineError | None:
        error = _error_of(done)
        if done.sqlstate != _NO_RIGHT or not isinstance(error, InstructionsFailed):
            return error
        missing = await self._creators.lacking(session, order.user.terms)
        return InstructionsFailed(f"{error}. What may be missing: {'; '.join(missing)}") if missing else error

    def _order(self, order: NewUser, login: str) -> Order:
        now_ms = self._server_now_ms()
        until_ms = now_ms + order.lifetime_ms + GRACE_MS if login == CAN_LOGIN else 0
        return creation(order, login, until_ms, expiration(now_ms + order.lifetime_ms + GRACE_MS), self._password(order))

    def _password(self, order: NewUser) -> str:
        if not self._sends_verifier:
            return order.password.text.reveal()
        check_form(order.password.verifier)
        return order.password.verifier.reveal()


async def _undo(session: Session, name: str) -> None:
    """Takes a user away again. Raises `DatabaseUnavailable`, so that its lease is revoked, where that fails."""
    quoted = identifier(name)
    own = "" if session.greeting.superuser else f"GRANT {quoted} TO CURRENT_USER; "
    try:
        await session.run(f"{own}DROP OWNED BY {quoted}; DROP ROLE {quoted}")
    except asyncpg.PostgresError as error:
        raise DatabaseUnavailable(
            f"the statements granted less than they say, and the user stays: {first_line(error)}"
        ) from error


def lacks_rights(done: Done) -> bool:
    """Whether a user was not made, or not as its statements say, for what may be a want of rights."""
    return bool(done.warnings) or done.sqlstate.startswith(_DENIED)


def _error_of(done: Done) -> EngineError | None:
    if done.oid and not done.warnings:
        return None
    if done.oid:
        return InstructionsFailed(f"the statements granted less than they say, so they were undone: {'; '.join(done.warnings)}")
    if done.sqlstate == TAKEN:
        return UserNameTaken()
    if done.sqlstate in (ESCAPED, NOT_MADE, SUPERUSER):
        return InstructionsFailed(f"{done.message}; nothing was kept")
    if is_transient(done.sqlstate):
        return DatabaseUnavailable(f"the statements kept colliding with others: {done.message} (SQLSTATE {done.sqlstate})")
    return InstructionsFailed(f"the role's statements failed and were undone: {done.message} (SQLSTATE {done.sqlstate})")
