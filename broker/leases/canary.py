"""Canary: a user that is made, logs in, is renewed and revoked, only to see that all of this works.

It is a lease like any other while it lives, `reserved` until it is revoked: a crash at any point leaves an intent, which is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.catalog.roles import MOUNT
from broker.clock import stopwatch_s
from broker.engines.guard import Guard
from broker.engines.protocol import Extension, NewUser, Password, User
from broker.errors import BrokerError, DatabaseUnavailable, PermissionDenied, Unavailable
from broker.leases import lifecycle
from broker.leases.expire import Expirer, Outcomes
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import LeaseFacts, LeaseNumber, Terms, TokenNumber
from broker.store.words import Move, Reservation

_LIFETIME_MS = 60_000
_GONE_WITHIN_S = 20.0
_NAME = "canary"
MADE, LOGGED_IN, RENEWED, REVOKED = "made", "logged in", "renewed", "revoked and proved absent"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried with the user."""

    name: str
    took_ms: float
    error: BrokerError | None = None


@dataclass(slots=True)
class Flight:
    """What became of a canary: step by step, until one failed; it is revoked in any case."""

    username: str
    steps: list[Step] = field(default_factory=list)

    @property
    def failure(self) -> Step | None:
        """The first step that failed."""
        return next((step for step in self.steps if step.error is not None), None)

    async def step(self, name: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether it went well."""
        started, error = stopwatch_s(), None
        try:
            await work()
        except BrokerError as failed:
            error = failed
        self.steps.append(Step(name, (stopwatch_s() - started) * 1_000, error))
        return error is None


class Canary:
    """Flies canaries."""

    def __init__(self, parts: Parts, expirer: Expirer) -> None:
        self._parts = parts
        self._expirer = expirer

    async def fly(self, connection: Connection, engine: Guard, terms: Terms, token: TokenNumber) -> Flight:
        """How a user of these terms fares. What a database says stands in the flight; its intent ends with `token` too.

        Raises `PermissionDenied` (the token ended), `LimitExceeded`, `Unavailable`: no statement was sent then. When cancelled, the user
        is removed in the background.
        """
        with engine.place():
            password = await engine.new_password()
            number, facts = await self._reserve(connection, engine, terms, token)
            user = replace(self._parts.markers.user(number, facts), terms=terms)
            flight = Flight(user.name)
            try:
                with self._parts.holds.login([number]):
                    await self._live(engine, user, password, flight)
            except BaseException:
                await asyncio.shield(self._end(number, facts))
                raise
        await flight.step(REVOKED, lambda: self._revoke(number, facts))
        return flight

    async def _reserve(
        self, connection: Connection, engine: Guard, terms: Terms, token: TokenNumber
    ) -> tuple[LeaseNumber, LeaseFacts]:
        now = self._parts.store.now_ms()
        facts = LeaseFacts(
            path=f"{MOUNT}/check/{connection.name}",
            role=_NAME,
            role_revision=0,
            connection_name=connection.name,
            username=engine.user_name(_NAME, connection.name),
            terms=Terms(revocation=terms.revocation, renewal=terms.renewal, options=terms.options),
            issued_ms=now,
            expires_ms=now + _LIFETIME_MS,
            reason=_NAME,
        )
        number = LeaseNumber(self._parts.numbers.next())
        wanted = Reservation(number=number, connection=connection.number, token=token, facts=facts, due_in_ms=_LIFETIME_MS)
        [refusal] = await self._parts.store.reserve([wanted])
        if refusal is not None:
            raise PermissionDenied
        return number, facts

    async def _live(self, engine: Guard, user: User, password: Password, flight: Flight) -> None:
        known = user

        async def make() -> None:
            nonlocal known
            known = replace(user, identity=await engine.create(NewUser(user=user, password=password, lifetime_ms=_LIFETIME_MS)))

        async def renew() -> None:
            for outcome in await engine.extend([Extension(user=known, lifetime_ms=_LIFETIME_MS)]):
                if outcome.error is not None:
                    raise outcome.error

        if await flight.step(MADE, make) and await flight.step(LOGGED_IN, lambda: engine.log_in(known, password.text)):
            await flight.step(RENEWED, renew)

    async def _revoke(self, number: LeaseNumber, facts: LeaseFacts) -> None:
        with self._expirer.listen() as heard:
            await asyncio.shield(self._end(number, facts))
            await self._gone(heard, number)

    async def _gone(self, heard: Outcomes, number: LeaseNumber) -> None:
        try:
            async with asyncio.timeout(_GONE_WITHIN_S):
                failures = await heard.of([number])
        except TimeoutError:
            raise DatabaseUnavailable(f"not gone within {_GONE_WITHIN_S:g} s; that goes on in the background") from None
        if number in failures:
            raise failures[number]

    async def _end(self, number: LeaseNumber, facts: LeaseFacts) -> None:
        """Ends it durably; what can't be written now falls due by itself."""
        move = Move(
            number=number,
            expect=lifecycle.expected(Event.ENDED),
            to=lifecycle.target(Event.ENDED),
            due_in_ms=0,
            facts=replace(facts, revoke_started_ms=self._parts.store.now_ms()),
        )
        try:
            await self._parts.store.move([move])
        except Unavailable:
            return
        self._parts.wake_expiry()
