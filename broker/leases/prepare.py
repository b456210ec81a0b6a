"""Prepared users: made ahead, unable to log in, password sealed in the store; a lease turns one on.

The store holds the pool. Memory holds a window of it per role, so that taking one costs no read; the claim itself is a
transition in the store that only one taker wins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.engines.protocol import Engine, NewUser, Outcome, Password
from broker.errors import BrokerError, DatabaseUnavailable, EngineError
from broker.leases import lifecycle
from broker.leases.draft import Drafts
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.recipe import recipe
from broker.model import NO_TOKEN, ConnectionNumber, Lease, LeaseFacts, LeaseNumber, LeaseState
from broker.store.words import Move, Reservation

_WINDOW = 512
_PREPARED_DUE_MS = 100 * 365 * 86_400_000
"""A prepared user waits as long as its role wants it: due in a century, that is never."""
_PREPARING_DUE_MS = 300_000
_LOW_WATER = 4
"""While requests are under way a pool is refilled only when less than a quarter of it is left: requests come first."""
_DISPLAY_NAME = "pool"
_HELD = "its login was on"
_FIRST = LeaseNumber(0)


@dataclass(slots=True)
class _Window:
    revision: int
    recipe: str
    ready: deque[Lease] = field(default_factory=deque)
    after: LeaseNumber = _FIRST
    empty: bool = False
    """Nothing beyond `after` when last read; a refill resets it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which prepared users a role wants, and how many."""

    recipe: str
    count: int
    connection: ConnectionNumber | None
    """None while the role's connection does not exist: no user is wanted then."""

    def has(self, lease: Lease) -> bool:
        """Whether the user is such as the role would make it now, and on its present connection."""
        return lease.facts.recipe == self.recipe and lease.connection == self.connection


class Pools:
    """The prepared users of every role."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._windows: dict[str, _Window] = {}
        self._drafts = Drafts()
        self._first = LeaseNumber(parts.numbers.next())
        """Users below were prepared by an earlier process."""

    async def take(self, role: Role, connection: Connection) -> Lease | None:
        """A prepared user such as the role would make it now, or None when none is ready. Only claiming it makes it one's own."""
        window = self._window(role)
        if not window.ready and not window.empty:
            await self._load(role, connection, window)
        while window.ready:
            lease = window.ready.popleft()
            # The connection may have got another number since the window was read: those users are at its former cluster.
            if lease.connection == connection.number:
                return lease
        return None

    async def give_back(self, role: Role, lease: Lease) -> None:
        """Takes back a user that was taken and, as the store says, not claimed: else it would wait beyond the window for ever."""
        window = self._windows.get(role.path)
        if window is None or window.recipe != lease.facts.recipe:
            return
        now = await self._parts.store.lease(lease.number)
        if now is not None and now.state is LeaseState.PREPARED:
            window.ready.appendleft(lease)

    async def discard(self, role: Role) -> None:
        """Ends the users within reach: the database has lost some of them, perhaps all. The next refill makes others."""
        ready = list(self._window(role).ready)
        self._window(role).ready.clear()
        await self._parts.store.move([_unwanted(lease, "lost by the database") for lease in ready])
        self._parts.wake_expiry()

    async def refill(self, role: Role, most: int) -> int:
        """Makes one batch of `most` users at most where the pool is short; answers how many were made. Gives way to requests.

        A database that is left alone gets no intents, each of which would have to be revoked there: none are made then.
        Raises `BrokerError` when the database or the store does not play along.
        """
        parts = self._parts
        missing = role.prepared_users - await parts.store.pool_size(role.path)
        if missing <= 0:
            return 0
        if parts.issuing and missing * _LOW_WATER < role.prepared_users * (_LOW_WATER - 1):
            return 0
        connection = parts.catalog.connection(role.db_name)
        engine = await parts.catalog.engine_for(connection)
        if not engine.traits.prepares:
            return 0
        try:
            engine.refuse_if_open()
        except DatabaseUnavailable:
            return 0
        count = min(missing, most, engine.traits.users_per_batch)
        orders = await self._intend(role, connection, engine, count)
        try:
            return await self._make(engine, orders)
        finally:
            # Also after a failure: some of the batch may be ready.
            self._window(role).empty = False

    async def drain(self, role_path: str, keep: Wanted | None) -> int:
        """Ends prepared users that the role no longer wants: made otherwise, too many, or all where it is gone."""
        unwanted: list[Lease] = []
        wanted = 0
        after = LeaseNumber(0)
        while page := await self._parts.store.prepared(role_path, _WINDOW, after=after):
            after = page[-1].number
            for lease in page:
                if keep is not None and keep.has(lease) and wanted < keep.count:
                    wanted += 1
                else:
                    unwanted.append(lease)
        if unwanted:
            await self._parts.store.move([_unwanted(lease, "role changed") for lease in unwanted])
            self._windows.pop(role_path, None)
            self._parts.wake_expiry()
        return len(unwanted)

    def _window(self, role: Role) -> _Window:
        window = self._windows.get(role.path)
        if window is None or window.revision != role.revision:
            made_from = recipe(role)
            if window is None or window.recipe != made_from:
                window = self._windows[role.path] = _Window(role.revision, made_from)
            window.revision = role.revision
        return window

    async def _load(self, role: Role, connection: Connection, window: _Window) -> None:
        async with window.lock:
            if window.ready or window.empty:
                return
            page = await self._parts.store.prepared(role.path, _WINDOW, after=window.after)
            mine = [lease for lease in page if lease.facts.recipe == window.recipe and lease.connection == connection.number]
            ready = await self._without_holder(connection, mine)
            window.empty = not page
            if page:
                window.after = page[-1].number
            window.ready.extend(ready)

    async def _without_holder(self, connection: Connection, leases: Sequence[Lease]) -> list[Lease]:
        """The leases but for those whose users can log in already, which are ended: somebody has been told the password.

        That is so where the store is an older copy, and a user was handed out after that was taken. Raises `DatabaseUnavailable`.
        """
        earlier = [lease for lease in leases if lease.number < self._first]
        if not earlier:
            return list(leases)
        engine = await self._parts.catalog.engine_for(connection)
        held: set[LeaseNumber] = set()
        for batch in engine.traits.batches(earlier):
            users = [self._parts.markers.of(lease) for lease in batch]
            held.update(standing.number for standing in await engine.look_up(users) if standing.can_login)
        if held:
            await self._parts.store.move([_unwanted(lease, _HELD) for lease in earlier if lease.number in held])
            self._parts.wake_expiry()
        return [lease for lease in leases if lease.number not in held]

    async def _intend(self, role: Role, connection: Connection, engine: Engine, count: int) -> list[tuple[NewUser, LeaseFacts]]:
        """Writes the intents down, passwords sealed with them, before the database hears of anything."""
        orders = []
        reservations = []
        for _ in range(count):
            number = LeaseNumber(self._parts.numbers.next())
            password = await engine.new_password()
            facts = self._facts(role, connection, engine, password)
            user = replace(self._parts.markers.user(number, facts), terms=role.terms)
            orders.append((NewUser(user=user, password=password, lifetime_ms=0), facts))
            reservations.append(
                Reservation(
                    number=number, connection=connection.number, token=NO_TOKEN, facts=facts, due_in_ms=_PREPARING_DUE_MS
                )
            )
        await self._parts.store.prepare(reservations)
        return orders

    async def _make(self, engine: Engine, orders: Sequence[tuple[NewUser, LeaseFacts]]) -> int:
        facts_of = {order.user.number: facts for order, facts in orders}
        outcomes: Sequence[Outcome]
        failure: BrokerError | None = None
        try:
            outcomes = await engine.prepare([order for order, _ in orders])
        except EngineError as error:
            outcomes = [Outcome(number, error) for number in facts_of]
        moves = []
        for outcome in outcomes:
            facts = facts_of[outcome.number]
            if outcome.error is None:
                moves.append(_prepared(outcome, facts))
            else:
                failure = outcome.error
                moves.append(_abandoned(outcome.number, facts))
        await self._parts.store.move(moves)
        if failure is not None:
            self._parts.wake_expiry()
            raise failure
        return len(orders)

    def _facts(self, role: Role, connection: Connection, engine: Engine, password: Password) -> LeaseFacts:
        return replace(
            self._drafts.of(role, connection),
            username=engine.user_name(_DISPLAY_NAME, role.name),
            password=password.text,
            issued_ms=self._parts.store.now_ms(),
        )


def _prepared(outcome: Outcome, facts: LeaseFacts) -> Move:
    return Move(
        number=outcome.number,
        expect=lifecycle.expected(Event.PREPARED),
        to=lifecycle.target(Event.PREPARED),
        due_in_ms=_PREPARED_DUE_MS,
        facts=replace(facts, identity=outcome.identity),
    )


def _abandoned(number: LeaseNumber, facts: LeaseFacts) -> Move:
    return Move(
        number=number,
        expect=lifecycle.expected(Event.ENDED),
        to=lifecycle.target(Event.ENDED),
        due_in_ms=0,
        facts=replace(facts, password=None, reason="not prepared"),
    )


def _unwanted(lease: Lease, reason: str) -> Move:
    return Move(
        number=lease.number,
        expect=lifecycle.expected(Event.UNWANTED),
        to=lifecycle.target(Event.UNWANTED),
        due_in_ms=0,
        facts=replace(lease.facts, password=None, reason=reason),
    )
