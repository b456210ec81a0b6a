"""The view escalation: code that is handed over runs with the rights of its next owner, for everybody who may use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from broker.demo.acts import ROLE, refusal, wait_until_dropped
from broker.demo.caller import Credential, DemoFailed
from broker.demo.hiding import BY_HAND
from broker.demo.scene import GROUP, HEIR, OWNER, Scene
from broker.demo.screen import Screen

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

TIDY_ROLE = "tidy-reader"
"""A role of the broker whose users' code is dropped when their lease ends."""
_SALARIES = "SELECT * FROM salaries"
_VIEW = f"CREATE VIEW drafts.peek AS {_SALARIES}"
_FUNCTION = f"CREATE FUNCTION drafts.pry() RETURNS SETOF salaries LANGUAGE sql SECURITY DEFINER AS '{_SALARIES}'"
_TABLE = "CREATE TABLE drafts.notes AS SELECT name FROM products"
_BY_VIEW = "SELECT * FROM drafts.peek"
_BY_FUNCTION = "SELECT * FROM drafts.pry()"
_SHARE = f"GRANT SELECT ON drafts.peek TO {GROUP}"
_KEEPERS = r"SELECT quote_ident(rolname) FROM pg_roles WHERE rolname LIKE 'left\_over\_%'"
"""Who owns what a remedy has kept for somebody to look at."""
_OWNERS = "SELECT relname::text AS name, relowner::regrole::text AS owner FROM pg_class WHERE oid = to_regclass('drafts.notes')"


@dataclass(frozen=True, slots=True)
class Escalation:
    """Plays it three times, with an accomplice who is another leased user."""

    scene: Scene
    screen: Screen

    async def play(self) -> None:
        """Raises `DemoFailed` when the accomplice gets to read the salaries from what the broker handed over."""
        accomplice = await self.scene.operator.credential(ROLE)
        session = await self.scene.connect(accomplice.username, accomplice.password)
        try:
            await self._against_plain_statements(session)
            await self._refused(session)
            await self._dropped(session)
        finally:
            session.terminate()

    async def _against_plain_statements(self, accomplice: Session) -> None:
        """What `REASSIGN OWNED` alone does."""
        scene, screen = self.scene, self.screen
        screen.part("A view that waits for another owner, and REASSIGN OWNED")
        screen.act("superuser", f"CREATE ROLE {BY_HAND} IN ROLE {GROUP}, for the attacker")
        await scene.watch.execute(f"CREATE ROLE {BY_HAND} IN ROLE {GROUP}")
        await scene.watch.execute(f"SET ROLE {BY_HAND}")
        await self._make(scene.watch, _VIEW, _SHARE)
        await self._unreadable(scene.watch, _BY_VIEW)
        await scene.watch.execute("RESET ROLE")
        statement = f"REASSIGN OWNED BY {BY_HAND} TO {OWNER}; DROP OWNED BY {BY_HAND}; DROP ROLE {BY_HAND}"
        screen.act("superuser", statement)
        await scene.watch.execute(statement)
        screen.act("accomplice", _BY_VIEW)
        rows = await accomplice.fetch(_BY_VIEW)
        await screen.breached(f"{len(rows)} rows: everybody's salaries, read with the rights of {OWNER}")
        await scene.watch.execute("DROP VIEW drafts.peek")

    async def _refused(self, accomplice: Session) -> None:
        """The default: the user is contained, and nothing changes hands."""
        scene, screen = self.scene, self.screen
        screen.part("The same view, and the broker")
        async with self._leased(ROLE) as (credential, session):
            await self._make(session, _VIEW, _SHARE)
            await self._unreadable(session, _BY_VIEW)
        screen.act("operator", "PUT /v1/sys/leases/revoke")
        lease = {"lease_id": credential.lease_id}
        await screen.refused(await scene.operator.refusal("PUT", "sys/leases/revoke", lease))
        screen.act("attacker", "logs in again")
        await screen.refused(await refusal(scene.connect(credential.username, credential.password)))
        await self._unreadable(accomplice, _BY_VIEW, actor="accomplice")
        screen.act("operator", "PUT /v1/sys/leases/lookup, and runs what it says")
        shown = (await scene.operator.call("PUT", "sys/leases/lookup", lease)).body["data"]
        for statement in shown["remedy"]:
            screen.note(statement)
            await scene.watch.execute(statement)
        await self._revoke(credential)
        await self._unreadable(accomplice, _BY_VIEW, actor="accomplice")
        for [keeper] in await scene.watch.fetch(_KEEPERS):
            statement = f"DROP OWNED BY {keeper}; DROP ROLE {keeper}"
            screen.act("superuser", f"has looked at what was kept: {statement}")
            await scene.watch.execute(statement)

    async def _dropped(self, accomplice: Session) -> None:
        """Where the role says so, code goes and data changes hands."""
        scene, screen = self.scene, self.screen
        screen.part("A function that runs as its owner, and a role whose users' code is dropped")
        async with self._leased(TIDY_ROLE) as (credential, session):
            await self._make(session, _FUNCTION, _TABLE)
            await self._unreadable(session, _BY_FUNCTION)
        await self._revoke(credential)
        await self._unreadable(accomplice, _BY_FUNCTION, actor="accomplice")
        screen.act("superuser", "looks for what the user has left")
        left = await scene.watch.fetchrow(_OWNERS)
        if left is None or left["owner"] != HEIR:
            raise DemoFailed("the user's table did not go to its heir")
        await screen.done(f"its table {left['name']} belongs to {left['owner']} now: data, and no code")

    @asynccontextmanager
    async def _leased(self, role: str) -> AsyncIterator[tuple[Credential, Session]]:
        """A lease of the attacker's, and a session of its user."""
        self.screen.act("attacker", f"GET /v1/database/creds/{role}")
        credential = await self.scene.operator.credential(role)
        await self.screen.done(f"user {credential.username}")
        session = await self.scene.connect(credential.username, credential.password)
        try:
            yield credential, session
        finally:
            session.terminate()

    async def _make(self, session: Any, *statements: str) -> None:
        for statement in statements:
            self.screen.act("attacker", statement)
            await session.execute(statement)
        await self.screen.done("made")

    async def _unreadable(self, session: Any, query: str, *, actor: str = "attacker") -> None:
        """Raises `DemoFailed` when the query shows anything."""
        self.screen.act(actor, query)
        try:
            await self.screen.refused(await refusal(session.fetch(query)))
        except DemoFailed as error:
            raise DemoFailed(f"the {actor} read the salaries") from error

    async def _revoke(self, credential: Credential) -> None:
        self.screen.act("operator", "PUT /v1/sys/leases/revoke")
        reply = await self.scene.operator.call("PUT", "sys/leases/revoke", {"lease_id": credential.lease_id})
        await wait_until_dropped(self.scene, credential.username)
        await self.screen.done(f"{reply.status}  the user is gone")
