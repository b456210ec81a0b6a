"""What happens in the demo, part by part. Each part checks what it shows: a step that went otherwise ends the demo."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

import asyncpg

from broker.clock import stopwatch_s
from broker.demo.acts import PRODUCTS, ROLE, introduce, leave_nothing, refusal, wait_until_dropped, write_connection, write_role
from broker.demo.caller import Caller, Credential, DemoFailed
from broker.demo.ledger import COLUMNS, answered, verdict
from broker.demo.scene import GROUP, Scene
from broker.demo.screen import Screen
from broker.secret import Secret

LEASE_S = 5
_WRITE = "UPDATE products SET price = 0"
_FACTS = "SELECT rolcanlogin, rolvaliduntil, pg_has_role(oid, $2, 'MEMBER') AS reads FROM pg_roles WHERE rolname = $1"


@dataclass(slots=True)
class Story:
    """Tells the story of two leases on a scene."""

    title: ClassVar[str] = "A database user that lives for one lease"
    scene: Scene
    screen: Screen

    async def tell(self) -> None:
        """The whole of it. Raises `DemoFailed` when a step goes otherwise than it should."""
        await self._introduce()
        await self._configure()
        application = await self._admit()
        await self._one_lease(application)
        await self._revoked_by_hand(application)
        await self._audited()

    async def leave_nothing(self) -> None:
        """Ends every lease that there is, and shows that no role is left in the database."""
        await leave_nothing(self.scene, self.screen)

    async def _introduce(self) -> None:
        scene, screen = self.scene, self.screen
        await introduce(scene, screen)
        await screen.rows(["id", "name", "price"], [tuple(row) for row in await scene.watch.fetch(PRODUCTS)])

    async def _configure(self) -> None:
        """The operator says, once, which database there is and what may be asked for."""
        scene, screen = self.scene, self.screen
        screen.part("The operator says once what may be asked for")
        await write_connection(scene, screen, ROLE)
        screen.act("operator", f"POST /v1/database/roles/{ROLE}")
        status = await write_role(scene, lease_s=LEASE_S)
        await screen.done(f"{status}  '{ROLE}': joins group {GROUP}, {LEASE_S} s unless renewed, 1 minute at most")

    async def _admit(self) -> Caller:
        """A token of the application's own, a child of the operator's."""
        self.screen.act("operator", "POST /v1/auth/token/create")
        fields = {"display_name": "shop", "ttl": "1h"}
        reply = await self.scene.operator.call("POST", "auth/token/create", fields)
        await self.screen.done(f"{reply.status}  a token for the application, for an hour")
        self.screen.note("It is a root token with an hour to live: until there are policies, only those can read creds.")
        return self.scene.caller(Secret(reply.body["auth"]["client_token"]))

    async def _one_lease(self, application: Caller) -> None:
        credential = await self._ask(application)
        good_until = await self._look(credential)
        self.screen.note(
            "Should the broker die, the database itself stops the login: the lease's end and a few seconds of grace."
        )
        session = await self._log_in(credential)
        try:
            await self._read_and_write(session)
            await self._renew(application, credential, good_until)
            await self._expire(session, credential)
        finally:
            session.terminate()

    async def _ask(self, application: Caller) -> Credential:
        screen = self.screen
        screen.part("The application asks, and gets a user of its own")
        screen.act("application", f"GET /v1/database/creds/{ROLE}")
        began = stopwatch_s()
        credential = await application.credential(ROLE)
        took_ms = (stopwatch_s() - began) * 1000
        await screen.done(f"user {credential.username}, for {credential.lease_s} s  ({took_ms:.0f} ms)")
        return credential

    async def _look(self, credential: Credential) -> datetime:
        """What the database itself says of the user; answers until when its password is good."""
        self.screen.act("superuser", f"looks for {credential.username} in pg_roles")
        row = await self.scene.watch.fetchrow(_FACTS, credential.username, GROUP)
        if row is None:
            raise DemoFailed("the database does not know the user that was handed out")
        await self.screen.rows(
            ["can log in", f"in {GROUP}", "password valid until"],
            [(str(row["rolcanlogin"]).lower(), str(row["reads"]).lower(), f"{row['rolvaliduntil']:%H:%M:%S.%f}"[:-3])],
        )
        good_until: datetime = row["rolvaliduntil"]
        return good_until

    async def _log_in(self, credential: Credential) -> asyncpg.Connection[asyncpg.Record]:
        self.screen.part("It works with its own user, and with no more than its rights")
        self.screen.act("application", f"logs in to PostgreSQL as {credential.username}")
        session = await self.scene.connect(credential.username, credential.password)
        await self.screen.done("logged in")
        return session

    async def _read_and_write(self, session: asyncpg.Connection[asyncpg.Record]) -> None:
        screen = self.screen
        screen.act("application", PRODUCTS)
        rows = await session.fetch(PRODUCTS)
        await screen.rows(["id", "name", "price"], [tuple(row) for row in rows])
        screen.act("application", _WRITE)
        await screen.refused(await refusal(session.execute(_WRITE)))

    async def _renew(self, application: Caller, credential: Credential, good_until: datetime) -> None:
        screen = self.screen
        screen.part("It asks for more time")
        screen.act("application", f"PUT /v1/sys/leases/renew  increment={LEASE_S + 1}")
        fields = {"lease_id": credential.lease_id, "increment": LEASE_S + 1}
        reply = await application.call("PUT", "sys/leases/renew", fields)
        await screen.done(f"{reply.status}  {reply.body['lease_duration']} s from now")
        if await self._look(credential) <= good_until:
            raise DemoFailed("the lease was renewed, but the database was not told")

    async def _expire(self, session: asyncpg.Connection[asyncpg.Record], credential: Credential) -> None:
        screen = self.screen
        screen.part("Its time runs out")
        screen.act("application", "keeps its session open and renews no more")
        ended = asyncio.Event()
        session.add_termination_listener(lambda _: ended.set())
        if not await screen.wait_for(ended, seconds=LEASE_S + 1, text="the lease"):
            raise DemoFailed("the session was still open long after the lease had ended")
        await screen.done("the session ended: the broker took the user away")
        screen.act("application", PRODUCTS)
        await screen.refused(await refusal(session.fetch(PRODUCTS)))
        await self._gone(credential)

    async def _revoked_by_hand(self, application: Caller) -> None:
        screen = self.screen
        screen.part("A second lease, revoked by hand")
        screen.act("application", f"GET /v1/database/creds/{ROLE}")
        credential = await application.credential(ROLE)
        await screen.done(f"user {credential.username}, for {credential.lease_s} s")
        screen.act("operator", "PUT /v1/sys/leases/revoke")
        began = stopwatch_s()
        reply = await self.scene.operator.call("PUT", "sys/leases/revoke", {"lease_id": credential.lease_id})
        await screen.done(f"{reply.status}  revoked, and seen to be gone, in {(stopwatch_s() - began) * 1000:.0f} ms")
        await self._gone(credential)

    async def _gone(self, credential: Credential) -> None:
        """The user can't log in, and in a moment does not exist."""
        screen = self.screen
        screen.act("application", f"logs in to PostgreSQL as {credential.username}")
        await screen.refused(await refusal(self.scene.connect(credential.username, credential.password)))
        screen.act("superuser", f"looks for {credential.username} in pg_roles")
        await wait_until_dropped(self.scene, credential.username)
        await screen.done("0 rows: the user does not exist")

    async def _audited(self) -> None:
        screen = self.screen
        screen.part("Who got which user, and when: the audit log")
        await screen.rows(COLUMNS, answered(self.scene.broker.audit_file))
        screen.act("auditor", "verifies the chain of its lines")
        await screen.done(verdict(await self.scene.broker.verify_audit()))
