"""What a plugin's tests bring, and how the promises use it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from broker.engines.protocol import Engine, Extension, NewUser, Origin, Outcome, User
from broker.errors import EngineError
from broker.model import LeaseNumber, Terms
from broker.secret import Secret, random_below

Asked = TypeVar("Asked", User, Extension, NewUser)

HOUR_MS = 3_600_000
_numbers = itertools.count(random_below(1 << 40))


class Session(Protocol):
    """A session that a user opened, as an application does."""

    async def is_open(self) -> bool:
        """Whether the server still answers in it."""
        ...


class Subject(Protocol):
    """An open engine, and a way to look at its database that does not go through the engine."""

    engine: Engine
    origin: Origin
    """With which the engine was made."""
    terms: Terms
    """Instructions that work, and turn login on in so many words where that can be said."""
    failing_terms: Terms
    """Instructions of which the first ones work and a later one is refused by the database."""
    owning_terms: Terms
    """Instructions after which the user owns something that may not be destroyed, and has no safe new owner."""

    async def log_in(self, name: str, password: Secret) -> Session | None:
        """A new session of the user, or None when the server refuses the login."""
        ...

    async def exists(self, name: str) -> bool:
        """Whether the server has a user of that name, whoever made it."""
        ...

    async def add_stranger(self, name: str, password: Secret) -> None:
        """Makes a user of that name which can log in and is not the broker's."""
        ...

    async def remove_by_hand(self, name: str) -> None:
        """Removes a user as an operator would, past the engine; its sessions go on where the database lets them."""
        ...


class Made(NamedTuple):
    """A user that the engine made, and its password."""

    user: User
    password: Secret


def hold(truth: object, promise: str) -> None:
    """Fails the test with the promise that was broken."""
    if not truth:
        raise AssertionError(promise)


async def order(subject: Subject, terms: Terms | None = None, lifetime_ms: int = HOUR_MS) -> NewUser:
    """An order for a new user with a name of the engine's own."""
    number, name = LeaseNumber(next(_numbers)), subject.engine.user_name("promises", "kit")
    proof = hashlib.sha256(f"{number}{name}".encode()).hexdigest()[:32]
    marker = f"broker:v1:{subject.origin.broker}:{number}:{proof}"
    user = User(number=number, name=name, identity="", marker=marker, terms=terms or subject.terms)
    return NewUser(user=user, password=await subject.engine.new_password(), lifetime_ms=lifetime_ms)


async def create(subject: Subject, terms: Terms | None = None, lifetime_ms: int = HOUR_MS) -> Made:
    """A user made by `create`, with the identity that the server gave it."""
    wanted = await order(subject, terms, lifetime_ms)
    identity = await subject.engine.create(wanted)
    return Made(replace(wanted.user, identity=identity), wanted.password.text)


async def prepare(subject: Subject) -> Made:
    """A user made by `prepare`."""
    wanted = await order(subject)
    (outcome,) = await subject.engine.prepare([wanted])
    hold(outcome.error is None, f"a user can be prepared, yet: {outcome.error}")
    return Made(replace(wanted.user, identity=outcome.identity), wanted.password.text)


async def stranger(subject: Subject) -> Made:
    """A user that somebody else made, and a lease of ours that believes the name to be its own."""
    wanted = await order(subject)
    await subject.add_stranger(wanted.user.name, wanted.password.text)
    return Made(wanted.user, wanted.password.text)


async def errors(
    subject: Subject, verb: Callable[[Sequence[Asked]], Awaitable[Sequence[Outcome]]], asked: Sequence[Asked]
) -> list[EngineError | None]:
    """The verb's error for each user, in their order; in batches that the engine takes. Every user must get just one answer."""
    most = subject.engine.traits.users_per_batch
    batches = [asked[start : start + most] for start in range(0, len(asked), most)]
    outcomes = [outcome for batch in batches for outcome in await verb(batch)]
    numbers = [each.number if isinstance(each, User) else each.user.number for each in asked]
    answers = {outcome.number: outcome.error for outcome in outcomes}
    hold(sorted(outcome.number for outcome in outcomes) == sorted(numbers), "each user of a batch gets one answer, nobody else")
    return [answers[number] for number in numbers]


async def done(
    subject: Subject, verb: Callable[[Sequence[Asked]], Awaitable[Sequence[Outcome]]], asked: Sequence[Asked]
) -> None:
    """Every user's part of the verb must have succeeded."""
    failed = [error for error in await errors(subject, verb, asked) if error is not None]
    hold(not failed, f"the verb succeeds for every user, yet: {failed}")


async def remove(subject: Subject, users: Sequence[User]) -> None:
    """All stages of a revocation, one after the other."""
    engine = subject.engine
    for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
        await done(subject, verb, users)


async def can_log_in(subject: Subject, made: Made) -> bool:
    """Whether the user gets in with its password."""
    return await subject.log_in(made.user.name, made.password) is not None


async def session(subject: Subject, made: Made) -> Session:
    """A session of the user, which must get in."""
    opened = await subject.log_in(made.user.name, made.password)
    if opened is None:
        raise AssertionError("an enabled user can log in")
    return opened


def extension(made: Made, lifetime_ms: int = HOUR_MS) -> Extension:
    """An order to let the user in for that long from now."""
    return Extension(user=made.user, lifetime_ms=lifetime_ms)
