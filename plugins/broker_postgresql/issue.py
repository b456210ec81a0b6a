"""Making users: on demand, able to log in; or ahead, unable to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import asyncpg

from broker.engines.protocol import NewUser, Outcome
from broker.engines.statements import expiration
from broker.errors import DatabaseUnavailable, EngineError, InstructionsFailed, UserNameTaken
from broker.secret import random_below
from broker_postgresql.creation import CAN_LOGIN, NO_LOGIN, creation
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
_TOGETHER = 4
"""Users made ahead in one transaction. Few: it holds the lock on their group roles until all are hashed (8 ms each)."""


class Issuer:
    """Makes users over the general lane."""

    def __init__(self, lanes: Lanes, server_now_ms: Callable[[], int], *, sends_verifier: bool) -> None:
        self._lanes = lanes
        self._server_now_ms = server_now_ms
        self._sends_verifier = sends_verifier
        self._colliding: set[tuple[str, ...]] = set()
        """Creation statements that were seen to collide with themselves; from then on they run one at a time."""

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        async with self._lanes.general.session() as session:
            done = await self._made(session, [order], [self._order(order, CAN_LOGIN)])
            error = _error_of(done[0])
            if error is not None:
                raise error
            return str(done[0].oid)

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
        try:
            async with self._lanes.general.session() as session:
                done = await self._made(session, [order for order, _ in built], [order for _, order in built])
        except EngineError as error:
            return failed + [Outcome(order.user.number, error) for order, _ in built]
        return failed + [
            Outcome(order.user.number, _error_of(one), str(one.oid or "")) for (order, _), one in zip(built, done, strict=True)
        ]

    async def _made(self, session: Session, users: Sequence[NewUser], orders: Sequence[Order]) -> list[Done]:
        """Runs the orders; those that collided with others' are tried again, and those that granted nothing are undone."""
        texts = {user.user.terms.creation for user in users}
        done = await run_orders(session, orders, serial=not texts.isdisjoint(self._colliding))
        for attempt in range(1, _ATTEMPTS):
            again = [place for place, one in enumerate(done) if is_transient(one.sqlstate)]
            if not again:
                break
            self._colliding.update(users[place].user.terms.creation for place in again)
            await asyncio.sleep(random_below(_PAUSE_MS * attempt) / 1000)
            for place, one in zip(again, await run_orders(session, [orders[i] for i in again], serial=True), strict=True):
                done[place] = one
        for order, one in zip(orders, done, strict=True):
            if one.oid and one.warnings:
                await _undo(session, order.name)
        return done

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
