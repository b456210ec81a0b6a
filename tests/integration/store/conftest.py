"""A store to test, and the means to fill it.

`book` is all that the conformance suite uses: another store runs the suite unchanged by giving its own `book`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from broker.ids import Numbers
from broker.model import (
    NO_TOKEN,
    Accessor,
    ConnectionNumber,
    Lease,
    LeaseFacts,
    LeaseNumber,
    LeaseState,
    Terms,
    Token,
    TokenFacts,
    TokenNumber,
    UserName,
)
from broker.secret import Secret
from broker.store.protocol import Store
from broker.store.sqlite.store import SqliteStore
from broker.store.words import Handout, Move, Reservation

MASTER_KEY = bytes(range(32))
PATH = "database/creds/app"
HOUR_MS = 3_600_000
START_MS = 1_800_000_000_000


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self, at_ms: int = START_MS) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms

    def wall_ms(self) -> int:
        return self.at_ms

    def raise_to(self, floor_ms: int) -> None:
        self.at_ms = max(self.at_ms, floor_ms)


@dataclass
class Book:
    """A store, the power to age what it holds, and short ways to write what a test needs."""

    store: Store
    shift: Callable[[float], Awaitable[None]]
    """Ages all stored times by so many seconds."""
    numbers: Numbers

    def facts(self, path: str = PATH, **changes: Any) -> LeaseFacts:
        facts = LeaseFacts(
            path=path,
            role=path.rpartition("/")[2],
            role_revision=3,
            connection_name="planted-connection",
            username=UserName("planted-user-Ab3"),
            identity="16391",
            display_name="planted-display",
            accessor=Accessor("planted-accessor"),
            terms=Terms(creation=('CREATE ROLE "{{name}}"',), revocation=("DROP",), options={"owned_objects": "contain"}),
            issued_ms=self.store.now_ms(),
            expires_ms=self.store.now_ms() + HOUR_MS,
            max_expires_ms=self.store.now_ms() + 24 * HOUR_MS,
            default_ttl_s=3600,
        )
        return replace(facts, **changes)

    async def token(self, *, ttl_s: int | None = None, parent: TokenNumber = NO_TOKEN, uses: int | None = None) -> TokenNumber:
        number = TokenNumber(self.numbers.next())
        facts = TokenFacts(
            accessor=Accessor("planted-accessor"),
            policies=("default", "planted-policy"),
            display_name="planted-display",
            path="auth/token/create",
            meta={"team": "planted-meta"},
            creation_ttl_s=ttl_s or 0,
        )
        token = Token(number=number, parent=parent, expires_ms=None, uses_left=uses, digest=b"\x01" * 32, facts=facts)
        assert await self.store.add_token(token, ttl_s=ttl_s)
        return number

    def reservation(self, token: TokenNumber, path: str = PATH, **changes: Any) -> Reservation:
        reservation = Reservation(
            number=LeaseNumber(self.numbers.next()),
            connection=ConnectionNumber(1),
            token=token,
            facts=self.facts(path),
            due_in_ms=60_000,
        )
        return replace(reservation, **changes)

    async def reserved(self, token: TokenNumber, path: str = PATH, **changes: Any) -> LeaseNumber:
        asked = self.reservation(token, path, **changes)
        assert list(await self.store.reserve([asked])) == [None]
        return asked.number

    async def active(self, token: TokenNumber, path: str = PATH, due_in_ms: int = HOUR_MS, **changes: Any) -> LeaseNumber:
        number = await self.reserved(token, path, **changes)
        await self.moved(number, LeaseState.RESERVED, LeaseState.ACTIVE, due_in_ms=due_in_ms)
        return number

    async def pooled(self, path: str = PATH, password: str = "planted-password", **changes: Any) -> LeaseNumber:
        facts = self.facts(path, password=Secret(password), accessor=Accessor(""))
        asked = self.reservation(NO_TOKEN, path, facts=facts, **changes)
        await self.store.prepare([asked])
        await self.moved(asked.number, LeaseState.PREPARING, LeaseState.PREPARED, due_in_ms=HOUR_MS)
        return asked.number

    def handout(self, number: LeaseNumber, token: TokenNumber, path: str = PATH, **changes: Any) -> Handout:
        return replace(Handout(number=number, token=token, facts=self.facts(path), due_in_ms=HOUR_MS), **changes)

    async def moved(self, number: LeaseNumber, expect: LeaseState, to: LeaseState, *, due_in_ms: int = 0, **more: Any) -> None:
        move = Move(number=number, expect=(expect,), to=to, due_in_ms=due_in_ms, **more)
        assert await self.store.move([move]) == {number}

    async def gone(self, number: LeaseNumber, *, due_in_ms: int = 0) -> None:
        """Takes an active lease to its end."""
        await self.moved(number, LeaseState.ACTIVE, LeaseState.REVOKING)
        await self.moved(number, LeaseState.REVOKING, LeaseState.GONE, due_in_ms=due_in_ms)

    async def lease(self, number: LeaseNumber) -> Lease:
        lease = await self.store.lease(number)
        assert lease is not None
        return lease

    async def state(self, number: LeaseNumber) -> LeaseState:
        return (await self.lease(number)).state


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def master_key() -> bytes:
    return MASTER_KEY


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(directory: Path, clock: HandClock) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(directory, MASTER_KEY, clock)
    yield opened
    await opened.close()


@pytest.fixture
def book_of(clock: HandClock) -> Callable[[SqliteStore], Book]:
    """A book over a store that the test opened itself."""

    async def shift(seconds: float) -> None:
        # This store stamps times by its clock, so a clock that goes on is the same as times that age.
        clock.at_ms += round(seconds * 1000)

    numbers = Numbers(clock)
    return lambda store: Book(store, shift, numbers)


@pytest.fixture
def book(store: SqliteStore, book_of: Callable[[SqliteStore], Book]) -> Book:
    return book_of(store)
