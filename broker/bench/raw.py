"""The raw driver: the same statements without a broker, at the same concurrency. All other rows are measured against it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import asyncpg
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from broker.bench.figures import Figure
from broker.clock import stopwatch_s
from broker.secret import random_bytes, random_text

GROUP = "broker_bench_readers"
RAW_NAMES = r"raw\_%"
"""What the names that the raw driver makes are LIKE."""
DROPS_PER_TRANSACTION = 256
_CREATIONS_PER_TRANSACTION = 500
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

PgConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Creations(Protocol):
    """Makes users for `seconds` over `clients` connections, and answers how many."""

    async def __call__(self, dsn: str, *, clients: int, seconds: float, iterations: int) -> Figure:
        """See `create_users`."""
        ...


def creation(name: str, verifier: str) -> str:
    """The statements of one user, as every row of the bench runs them, in one round trip and one transaction."""
    return (
        f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{verifier}' VALID UNTIL '2099-01-01 00:00:00+00' IN ROLE {GROUP};"
        f"COMMENT ON ROLE \"{name}\" IS 'bench';"
    )


def scram_verifier(iterations: int) -> str:
    """A SCRAM-SHA-256 verifier of a random password (RFC 5802 section 3, in the form that PostgreSQL stores)."""
    salt = random_bytes(16)
    salted = PBKDF2HMAC(algorithm=SHA256(), length=32, salt=salt, iterations=iterations).derive(random_bytes(20))
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_base64(salt)}${_base64(stored)}:{_base64(server)}"


def new_name() -> str:
    """A user name of the raw driver."""
    return f"raw_{random_text(20, _LETTERS)}"


async def make_users(connection: PgConnection, count: int) -> list[str]:
    """Makes users fast (verifiers of one iteration, many in a statement) and answers their names."""
    verifier = scram_verifier(1)
    names = [new_name() for _ in range(count)]
    for batch in batches(names, _CREATIONS_PER_TRANSACTION):
        await connection.execute("".join(creation(name, verifier) for name in batch))
    return names


async def drop_users(connection: PgConnection, names: Sequence[str]) -> Figure:
    """Drops users in transactions of 256, the fastest way that the driver has."""
    started_s = stopwatch_s()
    for batch in batches(names, DROPS_PER_TRANSACTION):
        await connection.execute(";".join(f'DROP ROLE "{name}"' for name in batch))
    return Figure(done=len(names), seconds=stopwatch_s() - started_s)


async def create_users(dsn: str, *, clients: int, seconds: float, iterations: int) -> Figure:
    """`clients` connections that each make one user after the other for `seconds`, its verifier at hand. The users stay."""
    verifier = scram_verifier(iterations)

    async def at_hand() -> str:
        return verifier

    return await _create(dsn, clients, _ClosedLoop(at_hand, seconds))


async def create_users_hashing(dsn: str, *, clients: int, seconds: float, iterations: int) -> Figure:
    """The same with a verifier made for each, in a thread: what whoever gives each user a password of its own has to do."""
    return await _create(dsn, clients, _ClosedLoop(partial(asyncio.to_thread, scram_verifier, iterations), seconds))


async def _create(dsn: str, clients: int, loop: _ClosedLoop) -> Figure:
    connections = [await asyncpg.connect(dsn) for _ in range(clients)]
    try:
        return await loop.run(connections)
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


class _ClosedLoop:
    """Clients that ask again as soon as they are answered, until the time is over or they fail."""

    def __init__(self, verifier: Callable[[], Awaitable[str]], seconds: float) -> None:
        self._verifier = verifier
        self._seconds = seconds
        self._started_s = 0.0
        self._latencies_us: list[int] = []
        self._failures: list[str] = []

    async def run(self, connections: Sequence[PgConnection]) -> Figure:
        self._started_s = stopwatch_s()
        await asyncio.gather(*(self._client(connection) for connection in connections))
        return Figure(
            done=len(self._latencies_us),
            seconds=stopwatch_s() - self._started_s,
            latencies_us=tuple(sorted(self._latencies_us)),
            errors=len(self._failures),
            first_error=self._failures[0] if self._failures else "",
        )

    async def _client(self, connection: PgConnection) -> None:
        try:
            while (sent_s := stopwatch_s()) - self._started_s < self._seconds:
                await connection.execute(creation(new_name(), await self._verifier()))
                self._latencies_us.append(int((stopwatch_s() - sent_s) * 1e6))
        except asyncpg.PostgresError as error:
            self._failures.append(str(error))


def batches(names: Sequence[str], size: int) -> list[Sequence[str]]:
    """`names` cut into pieces of at most `size`."""
    return [names[start : start + size] for start in range(0, len(names), size)]


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
