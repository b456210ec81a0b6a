"""The hidden login: past the login check before the login is turned off, asleep on the server until after its user is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg

from broker.clock import stopwatch_s
from broker.demo.acts import PRODUCTS, ROLE, refusal, wait_until_dropped
from broker.demo.caller import Credential, DemoFailed
from broker.demo.scene import GROUP, Scene
from broker.demo.screen import Screen
from broker.secret import Secret, random_text

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

BY_HAND = "mallory"
"""A user that no broker made."""
_BRIEF_S = 5
"""How long the login sleeps that nobody ends: the demo waits for it."""
_LONG_S = 20
"""How long the one sleeps that the broker has to find: longer than it may take to get there."""
_POLL_S = 0.02
_HIDES_WITHIN_S = 10
_ASLEEP = """
SELECT l.pid FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.database = 0 AND l.pid <> pg_backend_pid()
  AND a.usesysid IS NULL"""
"""All that shows of a login between its check and its session: its lock on the database that it enters."""
_SHOWN = "SELECT count(*) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE r.rolname = $1"
_END = "SELECT count(*) FROM (SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.usename = $1) AS ended"


@dataclass(frozen=True, slots=True)
class Hiding:
    """Plays it twice."""

    scene: Scene
    screen: Screen

    async def play(self) -> None:
        """Raises `DemoFailed` when the login gets to read after the broker said that it is gone."""
        await self._against_plain_statements()
        await self._against_the_broker()

    async def _against_plain_statements(self) -> None:
        """What `DROP ROLE` alone leaves."""
        scene, screen = self.scene, self.screen
        screen.part("A login that hides, from ALTER ROLE and DROP ROLE")
        password = Secret(random_text(24, "abcdefghijkmnpqrstuvwxyz"))
        screen.act("superuser", f"CREATE ROLE {BY_HAND} LOGIN IN ROLE {GROUP}")
        await scene.watch.execute(f"CREATE ROLE {BY_HAND} LOGIN PASSWORD '{password.reveal()}' IN ROLE {GROUP}")
        async with self._asleep(BY_HAND, password, _BRIEF_S) as (login, _):
            for statement in (f"ALTER ROLE {BY_HAND} NOLOGIN", f"DROP ROLE {BY_HAND}"):
                screen.act("superuser", statement)
                await scene.watch.execute(statement)
                if "NOLOGIN" in statement:
                    screen.act("superuser", f"pg_terminate_backend of all sessions of {BY_HAND}")
                    screen.note(f"{await scene.watch.fetchval(_END, BY_HAND)} sessions")
            await screen.done("0 sessions are open, and the role does not exist")
            screen.act("attacker", f"wakes: {PRODUCTS}")
            try:
                rows = await _read(login)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
                raise DemoFailed(f"the attacker's login woke before its user was dropped: {error}") from error
            await screen.breached(f"{len(rows)} rows, read as {GROUP} by a user that is no more")

    async def _against_the_broker(self) -> None:
        scene, screen = self.scene, self.screen
        screen.part("The same login, from the broker")
        screen.act("attacker", f"GET /v1/database/creds/{ROLE}")
        credential = await scene.operator.credential(ROLE)
        await screen.done(f"user {credential.username}")
        session = await scene.connect(credential.username, credential.password, options=_options(0))
        screen.act("attacker", f"logs in with {_options(0)}: {PRODUCTS}")
        await screen.done(f"{len(await session.fetch(PRODUCTS))} rows, read as {GROUP}: the lease lives")
        session.terminate()
        async with self._asleep(credential.username, credential.password, _LONG_S) as (login, pid):
            await self._revoke(credential, pid)
            screen.act("attacker", f"wakes: {PRODUCTS}")
            await screen.refused(await _denied(_read(login)))

    async def _revoke(self, credential: Credential, pid: int) -> None:
        scene, screen = self.scene, self.screen
        screen.act("operator", "PUT /v1/sys/leases/revoke")
        began = stopwatch_s()
        reply = await scene.operator.call("PUT", "sys/leases/revoke", {"lease_id": credential.lease_id})
        await screen.done(f"{reply.status}  in {(stopwatch_s() - began) * 1000:.0f} ms")
        screen.note("A login that is in progress for a second is asked whose it is: the broker tries to end it as the user.")
        screen.act("superuser", f"looks for {credential.username}, and for process {pid}")
        await wait_until_dropped(scene, credential.username)
        alive = pid in await self._sleepers()
        # Whether it only sleeps, or reads, is told by waiting for it.
        await (screen.breached(f"0 rows, but process {pid} is there") if alive else screen.done("0 rows, and 0 rows"))

    @asynccontextmanager
    async def _asleep(self, username: str, password: Secret, delay_s: int) -> AsyncIterator[tuple[asyncio.Task[Session], int]]:
        """A login that sleeps on the server as these lines begin, and its process id; ended on the way out."""
        screen, options = self.screen, _options(delay_s)
        screen.act("attacker", f"logs in as {username} with {options}")
        login = asyncio.ensure_future(self.scene.connect(username, password, options=options))
        try:
            pid = await self._hidden(login)
            shown = await self.scene.watch.fetchval(_SHOWN, username)
            await screen.done(
                f"its password was right; process {pid} sleeps; pg_stat_activity shows {shown} sessions of the user"
            )
            yield login, pid
        finally:
            login.cancel()
            [result] = await asyncio.gather(login, return_exceptions=True)
            if isinstance(result, asyncpg.Connection):
                result.terminate()

    async def _hidden(self, login: asyncio.Task[Session]) -> int:
        deadline_s = stopwatch_s() + _HIDES_WITHIN_S
        # An ordinary login, such as one of the broker's, shows for some milliseconds only.
        before: set[int] = set()
        while not (found := before & (before := await self._sleepers())):
            if login.done() or stopwatch_s() > deadline_s:
                raise DemoFailed("the attacker's login did not get past the check")
            await asyncio.sleep(0.1)
        return found.pop()

    async def _sleepers(self) -> set[int]:
        return {row["pid"] for row in await self.scene.watch.fetch(_ASLEEP)}


def _options(delay_s: int) -> str:
    return f"-c post_auth_delay={delay_s} -c role={GROUP}"


async def _read(login: Awaitable[Session]) -> list[asyncpg.Record]:
    return await (await login).fetch(PRODUCTS)


async def _denied(attempt: Awaitable[object]) -> str:
    try:
        return await refusal(attempt)
    except DemoFailed as error:
        raise DemoFailed("the hidden login read after its lease was revoked") from error
