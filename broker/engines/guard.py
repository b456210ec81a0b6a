"""What every engine gets from outside: a time limit, a breaker, metrics, and errors without secrets. Engines stay naive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import structlog
from msgspec.structs import replace

from broker.clock import Clock
from broker.engines.protocol import (
    Engine,
    Extension,
    Health,
    Lack,
    NewUser,
    Outcome,
    Password,
    Rehearsal,
    Seen,
    Standing,
    Swept,
    Traits,
    User,
)
from broker.engines.settings import EngineSettings
from broker.engines.watch import Verdict, Watch, health_verdict
from broker.errors import DatabaseUnavailable, EngineError, LimitExceeded
from broker.metrics import Metrics
from broker.model import Terms, UserName
from broker.secret import Secret

_LISTED_AT_ONCE = 500
_LOG = structlog.get_logger(__name__)


class Guard:
    """Wraps one connection's engine and meets `Engine` itself.

    Beyond the protocol it raises `DatabaseUnavailable` at once while the breaker is open, and for a verb over its time limit
    (which may have been done: nothing may be assumed). Batch verbs answer for every user,
    in the order asked. No lock: calls run side by side, as many as the engine takes.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        settings: EngineSettings,
        metrics: Metrics,
        clock: Clock,
        secrets: Sequence[Secret] = (),
    ) -> None:
        """Guards `engine` as the connection `name`; `secrets` are the connection's own, and no error shows them."""
        self._engine = engine
        self._name = name
        self._settings = settings
        self._watch = Watch(engine, name, settings, metrics, clock, secrets)
        self._places_taken = 0

    @property
    def traits(self) -> Traits:
        """See `Engine.traits`."""
        return self._engine.traits

    def refuse_if_open(self) -> None:
        """Raises `DatabaseUnavailable` while the breaker is open: for who has to spend something before it calls a verb."""
        self._watch.refuse_if_open()

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of `max_in_flight` places to make a user on demand, for the block: `create` is called in one.

        Raises `LimitExceeded` at once where all are taken, so that nothing is spent on a user that can't be made now.
        """
        limit = self._settings.max_in_flight
        if self._places_taken >= limit:
            raise LimitExceeded(
                f"{limit} users are being made on connection {self._name} already (engines.max_in_flight)",
                limit="max_in_flight",
            )
        self._places_taken += 1
        try:
            yield
        finally:
            self._places_taken -= 1

    async def open(self) -> Health:
        """See `Engine.open`; after failures it is the breaker's probe, like any other call."""
        return await self._watch.call("open", self._settings.connect_timeout_s, self._engine.open, (), health_verdict)

    async def close(self) -> None:
        """See `Engine.close`; ends after the connect limit at the latest, whatever the engine does."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._engine.close()
        except Exception as error:  # noqa: BLE001 - closing never raises
            _LOG.warning("engine did not close cleanly", connection=self._name, error=type(error).__name__)

    async def health(self) -> Health:
        """See `Engine.health`."""
        return await self._watch.call("health", self._settings.connect_timeout_s, self._engine.health, (), health_verdict)

    def user_name(self, display_name: str, role: str) -> UserName:
        """See `Engine.user_name`."""
        return self._watch.clean_at_once("user_name", partial(self._engine.user_name, display_name, role))

    async def new_password(self) -> Password:
        """See `Engine.new_password`; no database is asked, so the breaker does not matter."""
        return await self._watch.clean("new_password", self._engine.new_password)

    def check_terms(self, terms: Terms) -> Sequence[str]:
        """See `Engine.check_terms`."""
        return self._watch.clean_at_once("check_terms", partial(self._engine.check_terms, terms))

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        run = partial(self._engine.create, order)
        return await self._watch.call("create", self._settings.issue_timeout_s, run, _secrets_of([order]))

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """See `Engine.prepare`."""
        users = [order.user for order in orders]
        run = partial(self._engine.prepare, orders)
        return await self._batch("prepare", self._settings.issue_timeout_s, users, run, _secrets_of(orders))

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.enable`."""
        users = [extension.user for extension in extensions]
        return await self._batch("enable", self._settings.issue_timeout_s, users, partial(self._engine.enable, extensions))

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.extend`."""
        users = [extension.user for extension in extensions]
        return await self._batch("extend", self._settings.issue_timeout_s, users, partial(self._engine.extend, extensions))

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.disable`."""
        return await self._batch("disable", self._settings.contain_timeout_s, users, partial(self._engine.disable, users))

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.end_sessions`."""
        run = partial(self._engine.end_sessions, users)
        return await self._batch("end_sessions", self._settings.contain_timeout_s, users, run)

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.release`."""
        return await self._batch("release", self._settings.remove_timeout_s, users, partial(self._engine.release, users))

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.drop`."""
        return await self._batch("drop", self._settings.remove_timeout_s, users, partial(self._engine.drop, users))

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.prove_absent`."""
        run = partial(self._engine.prove_absent, users)
        return await self._batch("prove_absent", self._settings.remove_timeout_s, users, run)

    async def preflight(self, terms: Sequence[Terms]) -> Sequence[Lack]:
        """See `Engine.preflight`."""
        run = partial(self._engine.preflight, terms)
        return await self._watch.call("preflight", self._settings.issue_timeout_s, run)

    async def rehearse(self, terms: Terms) -> Rehearsal:
        """See `Engine.rehearse`."""
        run = partial(self._engine.rehearse, terms)
        return await self._watch.call("rehearse", self._settings.issue_timeout_s, run)

    def plain_terms(self) -> Terms:
        """See `Engine.plain_terms`."""
        return self._watch.clean_at_once("plain_terms", self._engine.plain_terms)

    async def log_in(self, user: User, password: Secret) -> None:
        """See `Engine.log_in`."""
        run = partial(self._engine.log_in, user, password)
        await self._watch.call("log_in", self._settings.connect_timeout_s, run, (password,))

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """See `Engine.look_up`."""
        return await self._watch.call("look_up", self._settings.contain_timeout_s, partial(self._engine.look_up, users))

    async def sweep(self) -> Sequence[Swept]:
        """See `Engine.sweep`."""

        async def swept() -> Sequence[Swept]:
            return [self._clean("sweep", each) for each in await self._engine.sweep()]

        return await self._watch.call("sweep", self._settings.contain_timeout_s, swept)

    async def abandoned(self) -> Sequence[Swept]:
        """See `Engine.abandoned`."""

        async def found() -> Sequence[Swept]:
            return [self._clean("abandoned", each) for each in await self._engine.abandoned()]

        return await self._watch.call("abandoned", self._settings.contain_timeout_s, found)

    async def inspect(self) -> Sequence[str]:
        """See `Engine.inspect`."""

        async def inspected() -> Sequence[str]:
            return [self._watch.clean_text(each) for each in await self._engine.inspect()]

        return await self._watch.call("inspect", self._settings.remove_timeout_s, inspected)

    async def list_users(self) -> AsyncIterator[Seen]:
        """See `Engine.list_users`; the limit holds for each 500 users, so that a slow reader is not taken for a slow database."""
        found = self._engine.list_users()
        try:
            run = partial(_up_to, _LISTED_AT_ONCE, found)
            some = await self._watch.call("list_users", self._settings.list_timeout_s, run)
            while some:
                for seen in some:
                    yield seen
                full = len(some) == _LISTED_AT_ONCE
                some = await self._watch.call("list_users", self._settings.list_timeout_s, run) if full else []
        finally:
            if isinstance(found, AsyncGenerator):
                await found.aclose()

    async def _batch(
        self,
        verb: str,
        limit_s: float,
        users: Sequence[User],
        run: Callable[[], Awaitable[Sequence[Outcome]]],
        secrets: tuple[Secret, ...] = (),
    ) -> Sequence[Outcome]:
        async def answered() -> Sequence[Outcome]:
            given = {outcome.number: outcome for outcome in await run()}
            return [self._answer(verb, user, given.get(user.number), secrets) for user in users]

        outcomes = await self._watch.call(verb, limit_s, answered, secrets, _verdict)
        if _verdict(outcomes) is Verdict.UNAVAILABLE:
            self._watch.explain(str(outcomes[0].error))
        return outcomes

    def _answer(self, verb: str, user: User, outcome: Outcome | None, secrets: tuple[Secret, ...]) -> Outcome:
        if outcome is None:
            return Outcome(user.number, EngineError(f"{verb}: the engine gave no answer for {user.name}"))
        return outcome if outcome.error is None else replace(outcome, error=self._cleaned(verb, outcome.error, secrets))

    def _clean(self, verb: str, swept: Swept) -> Swept:
        return swept if swept.error is None else replace(swept, error=self._cleaned(verb, swept.error, ()))

    def _cleaned(self, verb: str, error: EngineError, secrets: tuple[Secret, ...]) -> EngineError:
        cleaned = self._watch.cleaned(verb, error, secrets)
        return cleaned if isinstance(cleaned, EngineError) else EngineError(str(cleaned))


def _secrets_of(orders: Sequence[NewUser]) -> tuple[Secret, ...]:
    return tuple(secret for order in orders for secret in (order.password.text, order.password.verifier))


def _verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """A batch that found the database unavailable for all of its users is a failure of the database."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not errors:
        return Verdict.OK
    unavailable = len(errors) == len(outcomes) and all(isinstance(error, DatabaseUnavailable) for error in errors)
    return Verdict.UNAVAILABLE if unavailable else Verdict.PARTLY


async def _up_to(count: int, found: AsyncIterator[Seen]) -> list[Seen]:
    some = []
    async for seen in found:
        some.append(seen)
        if len(some) == count:
            break
    return some
