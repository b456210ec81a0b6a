"""What a test asks a throw-away server behind the broker's back, and does there as an application would."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from broker.secret import Secret
from broker.testing.postgresql import PostgresServer

ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""How a session tells that the server has ended it; the third comes where its last word arrives as something new is asked."""
_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


class Database:
    """One server, seen by its superuser and by users that the broker made."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server

    async def ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of a query of the superuser."""
        async with self._session(self.server.superuser_dsn()) as session:
            return list(await session.fetch(query, *arguments))

    async def run(self, statements: str) -> None:
        """Runs statements of the superuser."""
        async with self._session(self.server.superuser_dsn()) as session:
            await session.execute(statements)

    async def log_in(self, login: Mapping[str, str]) -> asyncpg.Connection[asyncpg.Record]:
        """A session of an issued user (`username`, `password`); the caller closes it. Raises what asyncpg does."""
        return await asyncpg.connect(self.server.dsn(login["username"], Secret(login["password"])).reveal())

    async def lets_in(self, login: Mapping[str, str]) -> bool:
        """Whether an issued user can log in now."""
        try:
            session = await self.log_in(login)
        except _REFUSED:
            return False
        await session.close()
        return True

    async def has(self, username: str) -> bool:
        """Whether there is a user of that name."""
        return bool(await self.ask("SELECT 1 FROM pg_roles WHERE rolname = $1", username))

    async def users(self, broker_id: str) -> dict[str, bool]:
        """The users that one broker made, by their markers, and whether each has a login; health names it as `cluster_id`."""
        rows = await self.ask(
            "SELECT rolname::text, rolcanlogin FROM pg_roles WHERE shobj_description(oid, 'pg_authid') LIKE $1",
            f"broker:v1:{broker_id}:%",
        )
        return {row[0]: row[1] for row in rows}

    @asynccontextmanager
    async def _session(self, dsn: Secret) -> AsyncIterator[Any]:
        session = await asyncpg.connect(dsn.reveal())
        try:
            yield session
        finally:
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                await session.close()
