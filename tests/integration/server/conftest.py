"""A whole broker on a real socket, with a real store and audit log; only the database is made of memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from yarl import URL

from broker import daemon
from broker.config import Config
from broker.config import parse as parse_config
from broker.engines.protocol import (
    PROTOCOL_VERSION,
    Extension,
    Fields,
    Health,
    Lack,
    NewUser,
    Origin,
    Outcome,
    Password,
    Rehearsal,
    Seen,
    Standing,
    Swept,
    Traits,
    User,
)
from broker.engines.registry import Claim, Registry
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest
from broker.model import Json, Terms, UserName
from broker.seal.providers.memory import MemoryKey
from broker.secret import Secret, random_text
from broker.testing.broker import until

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass
class MemoryDatabase:
    """Users in a set; `down` makes every call fail, a cleared `gate` makes users wait to be made."""

    users: set[str] = field(default_factory=set)
    concerns: list[str] = field(default_factory=list)
    abandoned: list[Swept] = field(default_factory=list)
    down: bool = False
    closed: bool = False
    """Lets no user log in."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.gate.set()


class MemoryEngine:
    """Meets `Engine`."""

    traits: ClassVar[Traits] = Traits(kind="memory", rehearses=True, inspects=True, users_per_batch=64)

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def open(self) -> Health:
        return await self.health()

    async def close(self) -> None:
        pass

    async def health(self) -> Health:
        self._reach()
        return Health(version="1", writable=True, server_time_ms=0, round_trip_ms=0.0)

    def user_name(self, display_name: str, role: str) -> UserName:
        return UserName(f"v-{display_name[:8]}-{role[:8]}-{random_text(20, _LETTERS)}")

    async def new_password(self) -> Password:
        return Password(text=Secret(random_text(24, _LETTERS)))

    def check_terms(self, terms: Terms) -> Sequence[str]:
        unknown = sorted(set(terms.options) - {"grant_roles"})
        return [f"unknown option {name}" for name in unknown]

    async def create(self, order: NewUser) -> str:
        self._reach()
        self._database.waiting += 1
        try:
            await self._database.gate.wait()
        finally:
            self._database.waiting -= 1
        self._database.users.add(order.user.name)
        return order.user.name

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        raise NotImplementedError

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        return await self.extend(extensions)

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        self._reach()
        return [Outcome(extension.user.number) for extension in extensions]

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        self._reach()
        return [Outcome(user.number) for user in users]

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        return await self.disable(users)

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        return await self.disable(users)

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        self._reach()
        self._database.users -= {user.name for user in users}
        return [Outcome(user.number) for user in users]

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        return await self.disable(users)

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        self._reach()
        known = self._database.users
        return [Standing(number=user.number, identity=user.name, can_login=True) for user in users if user.name in known]

    async def preflight(self, terms: Sequence[Terms]) -> Sequence[Lack]:
        self._reach()
        return ()

    async def rehearse(self, terms: Terms) -> Rehearsal:
        self._reach()
        return Rehearsal()

    def plain_terms(self) -> Terms:
        return Terms()

    async def log_in(self, user: User, password: Secret) -> None:
        self._reach()
        if self._database.closed:
            raise EngineError("no entry for host")

    async def sweep(self) -> Sequence[Swept]:
        swept, self._database.abandoned = self._database.abandoned, []
        return swept

    async def abandoned(self) -> Sequence[Swept]:
        return self._database.abandoned

    async def inspect(self) -> Sequence[str]:
        self._reach()
        return self._database.concerns

    async def list_users(self) -> AsyncIterator[Seen]:
        for name in sorted(self._database.users):
            yield Seen(name=UserName(name), identity=name, marker="", can_login=True)

    def _reach(self) -> None:
        if self._database.down:
            raise DatabaseUnavailable("the database does not answer")


class MemoryPlugin:
    """Meets `EnginePlugin`."""

    protocol_version: ClassVar[int] = PROTOCOL_VERSION
    traits: ClassVar[Traits] = MemoryEngine.traits
    fields: ClassVar[Fields] = Fields(connection={"connection_url": {"type": "string"}}, role={"colour": {"type": "string"}})
    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    def __call__(self, name: str, config: Mapping[str, Json], origin: Origin) -> MemoryEngine:
        return MemoryEngine(self._database)

    def check_config(self, config: Mapping[str, Json]) -> Sequence[str]:
        if "connection_url" in config and not isinstance(config["connection_url"], str):
            raise InvalidRequest("connection_url: not a text")
        return []

    def shown(self, config: Mapping[str, Json]) -> dict[str, Json]:
        return {key: value for key, value in config.items() if key not in self.secret_fields}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw) if self.raw else None

    @property
    def errors(self) -> list[str]:
        return self.body["errors"]


@dataclass
class Client:
    """Speaks to the broker as a Vault client does."""

    session: aiohttp.ClientSession
    address: str
    token: str
    audit_path: Path

    async def __call__(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        shown = self.token if token is None else token
        sent = {**({"X-Vault-Token": shown} if shown else {}), **(headers or {})}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        # As it stands: yarl would resolve dots and quote anew.
        url = URL(f"{self.address}/v1/{path}", encoded=True)
        async with self.session.request(method, url, data=data, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit_path.read_text().splitlines()]

    async def new_token(self, **fields: Any) -> str:
        answer = await self("POST", "auth/token/create", fields)
        return str(answer.body["auth"]["client_token"])


@pytest.fixture
def database() -> MemoryDatabase:
    """The database behind the broker."""
    return MemoryDatabase()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """The configuration; a test may change it before it asks for `broker`."""
    return {
        "server": {"address": "127.0.0.1:0", "max_body_bytes": 65_536, "drain_s": 2},
        "store": {"directory": str(tmp_path / "store")},
        "engines": {"connect_timeout_s": 2},
    }


@pytest.fixture
async def broker(settings: dict[str, Any], database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A running broker with the connection `pg` and the role `app`, and a client with its root token."""
    registry = Registry([Claim("memory", "tests", lambda: MemoryPlugin(database))])
    monkeypatch.setattr(Registry, "installed", classmethod(lambda _cls, _allowed=(): registry))
    config: Config = parse_config(settings)
    kept: list[Secret] = []
    running = await daemon.start(config, daemon.Seams(key=MemoryKey(), keep_root_token=kept.append))
    async with aiohttp.ClientSession() as session:
        client = Client(session, running.address, kept[0].reveal(), config.store.directory / "audit.log")
        await client(
            "PUT",
            "database/config/pg",
            {
                "plugin_name": "memory-database-plugin",
                "connection_url": "memory://",
                "username": "admin",
                "password": "hunter22-secret",
                "allowed_roles": "*",
            },
        )
        await client(
            "PUT", "database/roles/app", {"db_name": "pg", "creation_statements": "make", "default_ttl": "1h", "max_ttl": "2h"}
        )
        yield client
    await running.stop()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Waits until a condition holds, for things that happen in the background."""
    return until


@pytest.fixture
def raw(broker: Client) -> Callable[[bytes], Any]:
    """Sends bytes on a connection of their own and reads until the broker closes it."""
    host, _, port = broker.address.removeprefix("http://").rpartition(":")

    async def exchange(*chunks: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        for chunk in chunks:
            writer.write(chunk)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return answer

    return exchange
