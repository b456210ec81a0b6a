"""The guard: limits, breaker, metrics and clean errors around an engine that knows of none of them."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from broker.clock import Clock
from broker.engines.guard import Guard
from broker.engines.protocol import Extension, Health, NewUser, Origin, Outcome, Password, Seen, Swept, User
from broker.engines.settings import BreakerSettings, EngineSettings
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest, LimitExceeded, UserMissing, UserRemains
from broker.metrics import Metrics
from broker.model import LeaseNumber, Terms, UserName
from broker.secret import Secret
from broker.testing.engine import MemoryEngine, MemoryServer
from broker.testing.faults import Interposed

TINY_S = 0.001
VERBS = [
    "open",
    "health",
    "create",
    "prepare",
    "enable",
    "extend",
    "disable",
    "end_sessions",
    "release",
    "drop",
    "prove_absent",
]
PASSWORD = "Pa55word-of-the-user"


def user(number: int = 1) -> User:
    """A user of a lease."""
    return User(
        number=LeaseNumber(number),
        name=UserName(f"u{number}"),
        identity="",
        marker="broker:v1:b0:1:x",
        terms=Terms(creation=("x",)),
    )


def order(number: int = 1) -> NewUser:
    """An order for it."""
    return NewUser(user=user(number), password=Password(text=Secret(PASSWORD), verifier=Secret("SCRAM$x")), lifetime_ms=60_000)


async def ask(guard: Guard, verb: str) -> object:
    """Calls the verb for one user."""
    arguments: dict[str, list[object]] = {"open": [], "health": [], "create": [order()], "prepare": [[order()]]}
    extensions = [[Extension(user=user(), lifetime_ms=1)]]
    arguments |= {"enable": list(extensions), "extend": list(extensions)}
    return await getattr(guard, verb)(*arguments.get(verb, [[user()]]))


@dataclass
class Fault:
    """What happens before each verb: raises what is set, counts what was asked."""

    error: Exception | None = None
    asked: list[str] = field(default_factory=list)

    async def __call__(self, verb: str) -> None:
        """Before the verb."""
        self.asked.append(verb)
        if self.error is not None:
            raise self.error


class Flawed(MemoryEngine):
    """An engine whose batch answers a test makes up."""

    answers: Callable[[Sequence[User]], Sequence[Outcome]]

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """As made up."""
        return self.answers(users)


@dataclass
class Guarded:
    """An engine in memory with a fault before it, guarded."""

    guard: Guard
    fault: Fault
    server: MemoryServer
    metrics: Metrics

    def count(self, verb: str, outcome: str) -> float:
        """How many calls of that verb ended so."""
        labels = {"connection": "app", "verb": verb, "outcome": outcome}
        return self.metrics.registry.get_sample_value("broker_engine_call_seconds_count", labels) or 0.0

    def open(self) -> float | None:
        """What the metric says of the breaker."""
        return self.metrics.registry.get_sample_value("broker_engine_breaker_open", {"connection": "app"})


@pytest.fixture
def guarded(server: MemoryServer, origin: Origin, metrics: Metrics, clock: Clock) -> Guarded:
    """A guard whose breaker opens after two failures, for a second."""
    fault = Fault()
    limits = EngineSettings(max_in_flight=2, breaker=BreakerSettings(failures=2, first_open_s=2))
    engine = Interposed(MemoryEngine(server, origin), fault)
    return Guarded(Guard(engine, "app", limits, metrics, clock, [Secret("root-pw")]), fault, server, metrics)


@pytest.fixture
def hurried(server: MemoryServer, origin: Origin, metrics: Metrics, clock: Clock) -> Guarded:
    """A guard with tiny limits before an engine that never answers."""

    async def never(_verb: str) -> None:
        await asyncio.Event().wait()

    limits = EngineSettings(
        connect_timeout_s=TINY_S,
        issue_timeout_s=TINY_S,
        contain_timeout_s=TINY_S,
        remove_timeout_s=TINY_S,
        list_timeout_s=TINY_S,
        breaker=BreakerSettings(failures=100),
    )
    guard = Guard(Interposed(MemoryEngine(server, origin), never), "app", limits, metrics, clock)
    return Guarded(guard, Fault(), server, metrics)


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_has_a_limit(hurried: Guarded, verb: str) -> None:
    """An engine that never answers ends in an error that says which verb and which limit."""
    with pytest.raises(DatabaseUnavailable, match=rf"^{verb} on connection app was not done within 0\.001 s$"):
        await ask(hurried.guard, verb)
    assert hurried.count(verb, "timeout") == 1


async def test_listing_has_a_limit(hurried: Guarded) -> None:
    """A listing that never yields ends as well."""
    with pytest.raises(DatabaseUnavailable, match="list_users on connection app"):
        _ = [seen async for seen in hurried.guard.list_users()]


async def test_closing_ends_whatever_the_engine_does(hurried: Guarded, guarded: Guarded) -> None:
    """Closing neither hangs nor raises."""
    await hurried.guard.close()
    guarded.fault.error = RuntimeError("broken pipe")
    await guarded.guard.close()


async def test_engines_own_timeout_is_a_broken_promise(guarded: Guarded) -> None:
    """A `TimeoutError` of the engine's own is not taken for the guard's limit."""
    guarded.fault.error = TimeoutError("socket")
    with pytest.raises(EngineError, match="create on connection app failed inside the engine: TimeoutError"):
        await ask(guarded.guard, "create")
    assert guarded.count("create", "broken") == 1


async def test_cancellation_passes_through(guarded: Guarded, metrics: Metrics, clock: Clock) -> None:
    """A cancelled caller cancels the engine, and the call is counted as that."""
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(_verb: str) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    guard = Guard(
        Interposed(MemoryEngine(guarded.server, Origin(broker="b", boot="x")), hang), "app", EngineSettings(), metrics, clock
    )
    call = asyncio.create_task(ask(guard, "create"))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert left.is_set()
    assert guarded.count("create", "cancelled") == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_open_breaker_refuses_every_verb_at_once(guarded: Guarded, verb: str, clock: Clock) -> None:
    """After two failures no verb reaches the engine; the answer says why and when to ask again."""
    guarded.fault.error = DatabaseUnavailable("connection refused for root-pw")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await ask(guarded.guard, "disable")
    assert guarded.open() == 1
    guarded.fault.asked.clear()
    with pytest.raises(DatabaseUnavailable, match=r"app is left alone for [12] s.*connection refused for \[secret\]") as caught:
        await ask(guarded.guard, verb)
    assert caught.value.retry_after_s in (1, 2)
    assert guarded.fault.asked == []


async def test_first_call_after_the_pause_asks_for_health(guarded: Guarded, clock: Clock) -> None:
    """Once the time is over the server's health is the probe; if it is well, the call goes on and the breaker closes."""
    await broken_down(guarded)
    clock.raise_to(clock.now_ms() + 2_000)
    guarded.fault.error = None
    await ask(guarded.guard, "create")
    assert guarded.fault.asked == ["health", "create"]
    assert guarded.open() == 0


async def test_failed_probe_keeps_the_call_back(guarded: Guarded, clock: Clock) -> None:
    """Where the probe fails the call itself is never made, and the pause is twice as long."""
    await broken_down(guarded)
    clock.raise_to(clock.now_ms() + 2_000)
    with pytest.raises(DatabaseUnavailable, match="refused"):
        await ask(guarded.guard, "create")
    assert guarded.fault.asked == ["health"]
    clock.raise_to(clock.now_ms() + 1_999)
    with pytest.raises(DatabaseUnavailable, match="left alone"):
        await ask(guarded.guard, "health")
    assert guarded.open() == 1


@pytest.mark.parametrize("verb", ["open", "health"])
async def test_open_and_health_are_probes_themselves(guarded: Guarded, clock: Clock, verb: str) -> None:
    """These two need no probe before them."""
    await broken_down(guarded)
    clock.raise_to(clock.now_ms() + 2_000)
    guarded.fault.error = None
    await ask(guarded.guard, verb)
    assert guarded.fault.asked == [verb]
    assert guarded.open() == 0


async def test_others_wait_while_the_probe_is_under_way(
    server: MemoryServer, origin: Origin, metrics: Metrics, clock: Clock
) -> None:
    """One caller finds out; the others are told at once to come again."""
    probing, go_on = asyncio.Event(), asyncio.Event()
    fault = Fault(DatabaseUnavailable("refused"))

    async def before(verb: str) -> None:
        if verb == "health":
            probing.set()
            await go_on.wait()
        else:
            await fault(verb)

    limits = EngineSettings(breaker=BreakerSettings(failures=1, first_open_s=2))
    guard = Guard(Interposed(MemoryEngine(server, origin), before), "app", limits, metrics, clock)
    with pytest.raises(DatabaseUnavailable):
        await ask(guard, "create")
    fault.error = None
    clock.raise_to(clock.now_ms() + 2_000)
    first = asyncio.create_task(ask(guard, "create"))
    await probing.wait()
    with pytest.raises(DatabaseUnavailable, match="left alone"):
        await ask(guard, "create")
    go_on.set()
    assert await first


async def test_read_only_server_fails_the_probe(server: MemoryServer, origin: Origin, metrics: Metrics, clock: Clock) -> None:
    """A server that answers but can't be written to is of no use, and is left alone again."""

    class ReadOnly(MemoryEngine):
        async def health(self) -> Health:
            return replace(await super().health(), writable=False)

    fault = Fault(DatabaseUnavailable("read-only"))
    limits = EngineSettings(breaker=BreakerSettings(failures=1, first_open_s=2))
    guard = Guard(Interposed(ReadOnly(server, origin), fault), "app", limits, metrics, clock)
    with pytest.raises(DatabaseUnavailable):
        await ask(guard, "create")
    fault.error = None
    clock.raise_to(clock.now_ms() + 2_000)
    with pytest.raises(DatabaseUnavailable, match=r"left alone .* can't be written to"):
        await ask(guard, "create")
    assert fault.asked == ["create", "health"]


@pytest.mark.parametrize("error", [EngineError("no"), UserRemains("owns"), ValueError("bug")])
async def test_only_unavailability_opens_it(guarded: Guarded, error: Exception) -> None:
    """A database that refuses is alive, and a plugin's bug says nothing of it."""
    guarded.fault.error = error
    for _ in range(5):
        with pytest.raises(EngineError):
            await ask(guarded.guard, "drop")
    assert guarded.open() == 0


async def test_cancelled_probe_leaves_the_place_to_the_next(
    server: MemoryServer, origin: Origin, metrics: Metrics, clock: Clock
) -> None:
    """A caller that goes away during the probe does not shut the connection for ever."""
    probing = asyncio.Event()
    fault = Fault(DatabaseUnavailable("refused"))

    async def before(verb: str) -> None:
        await fault(verb)
        if verb == "health" and not probing.is_set():
            probing.set()
            await asyncio.Event().wait()

    limits = EngineSettings(breaker=BreakerSettings(failures=1, first_open_s=2))
    guard = Guard(Interposed(MemoryEngine(server, origin), before), "app", limits, metrics, clock)
    with pytest.raises(DatabaseUnavailable):
        await ask(guard, "create")
    fault.error = None
    clock.raise_to(clock.now_ms() + 2_000)
    call = asyncio.create_task(ask(guard, "create"))
    await probing.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await ask(guard, "create")


def flawed(guarded: Guarded, clock: Clock, answers: Callable[[Sequence[User]], Sequence[Outcome]]) -> Guard:
    """A guard before an engine with these answers."""
    engine = Flawed(guarded.server, Origin(broker="b0", boot="x"))
    engine.answers = answers
    return Guard(engine, "app", EngineSettings(breaker=BreakerSettings(failures=1)), guarded.metrics, clock)


async def test_batch_unavailable_for_all_is_a_failure(guarded: Guarded, clock: Clock) -> None:
    """Where every user of a batch found the database unavailable, the breaker counts one failure, and goes on saying why."""
    guard = flawed(
        guarded, clock, lambda users: [Outcome(each.number, DatabaseUnavailable("wrong password")) for each in users]
    )
    await guard.disable([user(1), user(2)])
    assert guarded.open() == 1
    with pytest.raises(DatabaseUnavailable, match=r"left alone .* wrong password"):
        await guard.disable([user(1)])
    assert guarded.count("disable", "unavailable") == 1


@pytest.mark.parametrize("second", [None, UserMissing()])
async def test_batch_unavailable_for_some_is_none(guarded: Guarded, clock: Clock, second: EngineError | None) -> None:
    """Where one user got an answer of another kind, the database is there."""
    guard = flawed(
        guarded, clock, lambda _: [Outcome(LeaseNumber(1), DatabaseUnavailable("away")), Outcome(LeaseNumber(2), second)]
    )
    await guard.disable([user(1), user(2)])
    assert guarded.open() == 0
    assert guarded.count("disable", "partly") == 1


async def test_batch_answers_for_every_user_in_order(guarded: Guarded, clock: Clock) -> None:
    """Answers come in the order asked; a user that the engine forgot has an error, and one nobody asked for is dropped."""
    guard = flawed(
        guarded, clock, lambda _: [Outcome(LeaseNumber(3), identity="three"), Outcome(LeaseNumber(1)), Outcome(LeaseNumber(9))]
    )
    outcomes = await guard.disable([user(1), user(2), user(3)])
    assert [outcome.number for outcome in outcomes] == [1, 2, 3]
    assert [outcome.identity for outcome in outcomes] == ["", "", "three"]
    assert str(outcomes[1].error) == "disable: the engine gave no answer for u2"
    assert outcomes[0].error is outcomes[2].error is None


async def test_empty_batch_is_fine(guarded: Guarded) -> None:
    """No users, no outcomes, no failure."""
    assert list(await guarded.guard.disable([])) == []
    assert guarded.count("disable", "ok") == 1


def test_places_to_make_users_are_limited(guarded: Guarded) -> None:
    """Past the limit a place is refused by the limit's name, and one that was left, also by an error, can be taken again."""
    with guarded.guard.place():
        for _ in range(3):
            with pytest.raises(EngineError, match="no"), guarded.guard.place():
                raise EngineError("no")
        with guarded.guard.place(), pytest.raises(LimitExceeded, match="connection app") as caught, guarded.guard.place():
            raise AssertionError
    assert caught.value.limit == "max_in_flight"


@pytest.mark.parametrize("verb", ["create", "prepare"])
@pytest.mark.parametrize("kind", [EngineError, DatabaseUnavailable, UserRemains, InvalidRequest, ValueError])
async def test_no_secret_leaves_with_an_error(guarded: Guarded, verb: str, kind: type[Exception]) -> None:
    """Neither the error, nor its cause, context, frames or the log hold a password, a verifier or the connection's own secret."""
    fault = kind(f"syntax error near '{PASSWORD}' or SCRAM$x for root-pw")
    fault.__cause__ = ValueError(PASSWORD)
    guarded.fault.error = fault
    with structlog.testing.capture_logs() as logged, pytest.raises((EngineError, InvalidRequest)) as caught:
        await ask(guarded.guard, verb)
    told = "".join(traceback.format_exception(caught.value)) + str(logged) + repr(vars(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not any(secret in told for secret in (PASSWORD, "SCRAM$x", "root-pw"))


async def test_no_secret_leaves_with_an_outcome(guarded: Guarded, clock: Clock) -> None:
    """The errors of single users are cleaned as well, also those of a kind that an engine must not give."""
    bad = ValueError("root-pw")
    answers = {1: EngineError("near root-pw"), 2: bad}
    guard = Guard(
        engine := Flawed(guarded.server, Origin(broker="b0", boot="x")),
        "app",
        EngineSettings(),
        guarded.metrics,
        clock,
        [Secret("root-pw")],
    )
    engine.answers = lambda users: [Outcome(each.number, answers[each.number]) for each in users]  # type: ignore[arg-type]  # wrong on purpose
    with structlog.testing.capture_logs() as logged:
        outcomes = await guard.disable([user(1), user(2)])
    assert [str(outcome.error) for outcome in outcomes] == [
        "near [secret]",
        "disable on connection app failed inside the engine: ValueError",
    ]
    assert "root-pw" not in str(logged)


async def test_broken_promise_is_logged_with_its_place(guarded: Guarded) -> None:
    """Whoever maintains the plugin learns class, verb, file and line, and no text."""
    guarded.fault.error = KeyError("p4ss")
    with structlog.testing.capture_logs() as logged, pytest.raises(EngineError):
        await ask(guarded.guard, "drop")
    (line,) = logged
    assert line["place"].startswith("test_guard.py:")
    assert (line["log_level"], line["connection"], line["verb"], line["error"]) == ("error", "app", "drop", "KeyError")
    assert "p4ss" not in str(line)


async def test_passwords_and_names_come_through(guarded: Guarded) -> None:
    """What touches no database works while the breaker is open, and its errors are clean as well."""
    await broken_down(guarded)
    assert guarded.guard.user_name("d", "r").startswith("v-d-r-")
    assert guarded.guard.check_terms(Terms(creation=("x",))) == ()
    with pytest.raises(InvalidRequest, match="empty creation statements"):
        guarded.guard.check_terms(Terms())
    guarded.fault.error = None
    assert (await guarded.guard.new_password()).text
    guarded.fault.error = ValueError("p4ss")
    with pytest.raises(EngineError, match="new_password on connection app failed inside the engine: ValueError"):
        await guarded.guard.new_password()
    assert guarded.guard.traits is MemoryEngine.traits


async def test_sweep_shows_no_secret(guarded: Guarded, clock: Any) -> None:
    """What a sweep says is kept from showing the connection's secrets, and goes on saying what would help."""

    class Powerless(MemoryEngine):
        async def sweep(self) -> Sequence[Swept]:
            told = UserRemains("denied to root-pw", remedy=("GRANT it TO root-pw",))
            return [Swept(identity="7", sessions=2, error=told), Swept(identity="8", sessions=1)]

    engine = Powerless(guarded.server, Origin(broker="b0", boot="x"))
    guard = Guard(engine, "app", EngineSettings(), guarded.metrics, clock, [Secret("root-pw")])
    first, second = await guard.sweep()
    assert isinstance(first.error, UserRemains)
    assert (str(first.error), first.error.remedy, first.sessions) == ("denied to [secret]", ("GRANT it TO [secret]",), 2)
    assert second == Swept(identity="8", sessions=1)


async def test_inspection_shows_no_secret(guarded: Guarded, clock: Any) -> None:
    """What an engine says of its database is kept from showing the connection's secrets; a failure counts as any other."""
    guarded.server.concerns.append("other can't be entered with root-pw")
    origin = Origin(broker="b0", boot="x")
    guard = Guard(MemoryEngine(guarded.server, origin), "app", EngineSettings(), guarded.metrics, clock, [Secret("root-pw")])
    assert await guard.inspect() == ["other can't be entered with [secret]"]
    guarded.fault.error = ValueError("p4ss")
    with pytest.raises(EngineError, match="inspect on connection app failed inside the engine: ValueError"):
        await guarded.guard.inspect()


async def test_long_listing_comes_whole(guarded: Guarded, server: MemoryServer) -> None:
    """A listing of more than one portion comes complete and in order."""
    names = [f"u{number}" for number in range(1_200)]
    for name in names:
        server.add(name, marker="broker:v1:b0:1:x")
    assert [seen.name async for seen in guarded.guard.list_users()] == names
    assert guarded.count("list_users", "ok") == 3


async def test_broken_off_listing_is_closed(guarded: Guarded, clock: Clock) -> None:
    """A reader that stops early leaves no cursor open in the engine."""
    closed = asyncio.Event()

    class Listing(MemoryEngine):
        async def list_users(self) -> AsyncIterator[Seen]:
            try:
                while True:
                    yield Seen(name=UserName("u"), identity="1", marker="m", can_login=True)
            finally:
                closed.set()

    guard = Guard(Listing(guarded.server, Origin(broker="b0", boot="x")), "app", EngineSettings(), guarded.metrics, clock)
    listing = guard.list_users()
    async for _ in listing:
        break
    await listing.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert closed.is_set()


async def broken_down(guarded: Guarded) -> None:
    """Opens the breaker and forgets what was asked."""
    guarded.fault.error = DatabaseUnavailable("refused")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await ask(guarded.guard, "disable")
    assert guarded.open() == 1
    guarded.fault.asked.clear()
