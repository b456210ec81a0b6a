"""One call of an engine's verb, watched: limit, breaker, metrics, and only clean errors come out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import PurePath
from types import TracebackType
from typing import TypeVar

import structlog

from broker.clock import Clock, stopwatch_s
from broker.engines.breaker import Breaker, Permit, State
from broker.engines.protocol import Engine, Health
from broker.engines.scrub import broken_promise, clean_error, scrubbed
from broker.engines.settings import EngineSettings
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest
from broker.metrics import Metrics
from broker.secret import Secret, random_below

T = TypeVar("T")

_CHANCES = 1_000
_LOG = structlog.get_logger(__name__)


class Verdict(StrEnum):
    """How a call ended: the metric's label, and what the breaker makes of it."""

    OK = "ok"
    PARTLY = "partly"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    BROKEN = "broken"
    CANCELLED = "cancelled"


_ANSWERED = frozenset({Verdict.OK, Verdict.PARTLY, Verdict.REFUSED})
_FAILED = frozenset({Verdict.UNAVAILABLE, Verdict.TIMEOUT})


class Watch:
    """Watches the calls of one connection."""

    def __init__(
        self, engine: Engine, name: str, settings: EngineSettings, metrics: Metrics, clock: Clock, secrets: Sequence[Secret]
    ) -> None:
        """`secrets` are kept out of every error, beside those that a call brings."""
        self._engine = engine
        self._name = name
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._secrets = tuple(secrets)
        self._breaker = Breaker(settings.breaker)
        self._last_failure = ""
        self._show_breaker()

    async def call(
        self,
        verb: str,
        limit_s: float,
        run: Callable[[], Awaitable[T]],
        secrets: tuple[Secret, ...] = (),
        verdict: Callable[[T], Verdict] = lambda _: Verdict.OK,
    ) -> T:
        """What `run` answers. Raises `EngineError` alone: `DatabaseUnavailable` also when the breaker is open or the time is up.

        The first call after the breaker's open time asks the server how it is, and goes on only if it is well: a probe must
        be cheap and must leave nothing half done.
        """
        permit = self._permit()
        if permit.probe and verb not in ("open", "health"):
            await self._attempt(permit, "health", self._settings.connect_timeout_s, self._engine.health, (), health_verdict)
            permit = self._permit()
        return await self._attempt(permit, verb, limit_s, run, secrets, verdict)

    def explain(self, why: str) -> None:
        """Says what a batch that found the database unavailable was told: it is in what is answered while the breaker is open."""
        self._last_failure = why

    async def clean(self, verb: str, run: Callable[[], Awaitable[T]]) -> T:
        """What `run` answers, without limit and breaker; errors come out as clean as from `call`."""
        try:
            return await run()
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is made one of ours
            failure = self.cleaned(verb, error, ())
        raise failure

    def clean_at_once(self, verb: str, run: Callable[[], T]) -> T:
        """As `clean`, for what is not awaited."""
        try:
            return run()
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is made one of ours
            failure = self.cleaned(verb, error, ())
        raise failure

    def cleaned(self, verb: str, error: Exception, secrets: tuple[Secret, ...]) -> EngineError | InvalidRequest:
        """A fresh error instead of the engine's; what an engine must not raise is logged, by class and place alone."""
        if isinstance(error, EngineError | InvalidRequest):
            return clean_error(error, self._secrets + secrets)
        _LOG.error(
            "engine broke its promise",
            connection=self._name,
            verb=verb,
            error=type(error).__name__,
            place=_place(error.__traceback__),
        )
        return broken_promise(self._name, verb, error)

    def clean_text(self, text: str) -> str:
        """What an engine says, without the connection's secrets."""
        return scrubbed(text, self._secrets)

    async def _attempt(
        self,
        permit: Permit,
        verb: str,
        limit_s: float,
        run: Callable[[], Awaitable[T]],
        secrets: tuple[Secret, ...],
        verdict: Callable[[T], Verdict],
    ) -> T:
        started, ended = stopwatch_s(), Verdict.CANCELLED
        failure: EngineError | InvalidRequest
        try:
            async with asyncio.timeout(limit_s) as limit:
                answer = await run()
            ended = verdict(answer)
            return answer
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is made one of ours
            if limit.expired():
                ended = Verdict.TIMEOUT
                failure = DatabaseUnavailable(f"{verb} on connection {self._name} was not done within {limit_s:g} s")
            else:
                ended = _raised(error)
                failure = self.cleaned(verb, error, secrets)
        finally:
            self._metrics.engine_calls.labels(self._name, verb, ended).observe(stopwatch_s() - started)
            self._settle(permit, verb, ended)
        self._last_failure = str(failure) if ended in _FAILED else self._last_failure
        # Raised here and not in the handler: there the engine's own exception would hang on it as its context.
        raise failure

    def refuse_if_open(self) -> None:
        """Raises `DatabaseUnavailable` while the database is left alone; takes no permit."""
        if self._breaker.wait_ms(self._clock.now_ms()):
            self._permit()

    def _permit(self) -> Permit:
        now_ms = self._clock.now_ms()
        permit = self._breaker.admit(now_ms)
        if permit is None:
            wait_s = max(1, math.ceil(self._breaker.wait_ms(now_ms) / 1000))
            raise DatabaseUnavailable(
                f"connection {self._name} is left alone for {wait_s} s, since its database was not usable: {self._last_failure}",
                retry_after_s=wait_s,
            )
        return permit

    def _settle(self, permit: Permit, verb: str, ended: Verdict) -> None:
        before = self._breaker.state
        if ended in _ANSWERED:
            self._breaker.succeeded(permit)
        elif ended in _FAILED:
            self._last_failure = f"{verb} found that it is away, or can't be written to"
            self._breaker.failed(permit, self._clock.now_ms(), random_below(_CHANCES) / _CHANCES)
        else:
            self._breaker.given_up(permit)
        if self._breaker.state is not before:
            self._show_breaker()

    def _show_breaker(self) -> None:
        self._metrics.breaker_open.labels(self._name).set(0 if self._breaker.state is State.CLOSED else 1)


def health_verdict(health: Health) -> Verdict:
    """A server that can't be written to is of no use: no user can be made or removed there."""
    return Verdict.OK if health.writable else Verdict.UNAVAILABLE


def _raised(error: Exception) -> Verdict:
    if isinstance(error, DatabaseUnavailable):
        return Verdict.UNAVAILABLE
    return Verdict.REFUSED if isinstance(error, EngineError | InvalidRequest) else Verdict.BROKEN


def _place(traceback: TracebackType | None) -> str:
    """File and line of the innermost frame; never its values."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{PurePath(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}" if traceback else ""
