"""The broker dies while it checks a connection or rehearses a role: after its next start no user of either is left, nor half a creator."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from broker.testing.broker import BrokerProcess, connection_to, until
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer

ALL_ROLES = "SELECT rolname::text, rolcanlogin, coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles"
VICTIM = (sys.executable, str(Path(__file__).with_name("victim.py")))
LOGIN, PASSWORD = "checked_login", "broker-password-1"
GROUP = "checked_readers"
QUIET = "[leases]\nreconcile = 0\nsweep = 3600\n"
LIMIT_S = 40
BROKEN = (aiohttp.ClientError, OSError)
ROLE = {"db_name": "pg", "grant_roles": [GROUP]}
ASKED = {"check": ("POST", "database/check/pg", None), "role": ("PUT", "database/roles/tried", ROLE)}
IN_CHECK = [
    *("engine.preflight.after", "store.reserve.after", "engine.create.after", "engine.log_in.after", "engine.extend.after"),
    *("store.move.after", "engine.disable.after", "engine.end_sessions.after", "engine.drop.before", "engine.drop.after"),
]
IN_REHEARSAL = [
    "engine.rehearse.before",
    "engine.rehearse.after",
    "engine.create.after",
    "engine.log_in.before",
    "engine.drop.before",
]


@dataclass
class Scene:
    """A broker that can be told where to die, with a connection whose users are made through creators where the server wants that."""

    broker: BrokerProcess
    database: Database
    before: set[tuple[Any, ...]]
    """The server's roles before the broker."""

    async def left(self) -> set[str]:
        """The roles that were not there before, without creators, who can't log in."""
        found = {tuple(row) for row in await self.database.ask(ALL_ROLES)} - self.before
        return {name for name, can_login, _ in found if can_login or not name.startswith("broker_")}

    async def roots(self) -> int:
        """How many creators' roots the broker has."""
        return len(await self.database.ask("SELECT FROM pg_shdescription WHERE description = $1", await self._comment()))

    async def _comment(self) -> str:
        return f"broker-creators:v1:{(await self.broker.request('GET', 'sys/health')).body['cluster_id']}"

    async def dies_at(self, step: str, asked: str) -> None:
        """Started anew it is asked, and dies at the step, unheard; then it is started once more."""
        self.broker.kill()
        await asyncio.to_thread(self.broker.start, step, "1")
        with contextlib.suppress(*BROKEN):
            answer = await self.broker.request(*ASKED[asked])
            raise AssertionError(answer)
        await asyncio.to_thread(self.broker.wait)
        await asyncio.to_thread(self.broker.start)

    async def comes_clean(self) -> None:
        """No user is left, after a moment; and a check goes well, which leaves none either."""

        async def clean() -> bool:
            return not await self.left()

        await until(clean, limit_s=LIMIT_S)
        checked = await self.broker.request(*ASKED["check"])
        assert checked.data["ok"], checked
        assert await self.left() == set()
        assert await self.roots() <= 1


@pytest.fixture(scope="module")
def server(postgresql_18: PostgresServer) -> PostgresServer:
    """With a plain CREATEROLE login that may hand out a group."""
    asyncio.run(
        Database(postgresql_18).run(
            f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}'; GRANT pg_signal_backend TO {LOGIN};"
            f"CREATE ROLE {GROUP}; GRANT {GROUP} TO {LOGIN} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE"
        )
    )
    return postgresql_18


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, server: PostgresServer) -> Iterator[BrokerProcess]:
    """One that takes a step to die at, with the connection `pg`, as a plain login."""
    with BrokerProcess(tmp_path_factory.mktemp("checking"), QUIET, command=VICTIM) as started:
        fields = connection_to(server, username=LOGIN, password=PASSWORD, scram_iterations=16)
        written = asyncio.run(started.request("PUT", "database/config/pg", fields))
        assert written.status == 204, written
        yield started


@pytest.fixture
async def scene(broker: BrokerProcess, server: PostgresServer) -> Scene:
    """No role is written yet, and of this broker there is no user."""
    made = Scene(broker, Database(server), set())
    assert (await broker.request("DELETE", "database/roles/tried")).status == 204
    made.before = {tuple(row) for row in await made.database.ask(ALL_ROLES)}
    return made


@pytest.mark.parametrize("step", IN_CHECK)
async def test_check_that_dies_leaves_no_canary(scene: Scene, step: str) -> None:
    """Killed at any step of a check, the broker removes what it made of a user at its next start."""
    await scene.dies_at(step, "check")
    await scene.comes_clean()


@pytest.mark.parametrize("step", IN_REHEARSAL)
async def test_rehearsal_that_dies_leaves_no_canary(scene: Scene, step: str) -> None:
    """So it does with the user that a role is tried on; the role was not written, and can be."""
    await scene.dies_at(step, "role")
    assert (await scene.broker.request("GET", "database/roles/tried")).status == 404
    assert (await scene.broker.request(*ASKED["role"])).status == 204
    await scene.comes_clean()


@pytest.mark.parametrize("asked", ASKED)
async def test_broker_that_dies_while_the_server_tries_out_leaves_nothing(scene: Scene, asked: str) -> None:
    """Its transaction on the server goes on without it, up to its end: rolled back, whatever was made in it."""
    holder = await asyncpg.connect(scene.database.server.superuser_dsn().reveal())
    try:
        # A comment is the second thing that is tried with a user: it is made by then, in a transaction that is under way.
        await holder.execute("BEGIN; LOCK TABLE pg_shdescription IN SHARE MODE")
        waits = "SELECT min(pid) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"

        async def keep_asking() -> None:
            # The server waits no longer than a lock timeout of seconds; so that it waits when we look, it is asked again.
            with contextlib.suppress(*BROKEN):
                while True:
                    await scene.broker.request("DELETE", "database/roles/tried")
                    await scene.broker.request(*ASKED[asked])

        asking = asyncio.create_task(keep_asking())
        await until(lambda: holder.fetchval(waits), every_s=0.005)
        scene.broker.kill()
        await asking
    finally:
        holder.terminate()
    await asyncio.to_thread(scene.broker.start)
    await scene.comes_clean()


async def test_canaries_use_the_creators_that_are_there(scene: Scene) -> None:
    """Checks and rehearsals beside leases of a plain login use its creators, and leave them and all memberships as they were."""
    assert (await scene.broker.request("PUT", "database/roles/tried", ROLE)).status == 204
    leases = [await scene.broker.request("GET", "database/creds/tried") for _ in range(3)]
    assert [lease.status for lease in leases] == [200] * 3
    assert (await scene.broker.request(*ASKED["check"])).data["ok"]

    async def catalog() -> list[set[tuple[Any, ...]]]:
        queries = (
            "SELECT roleid, member, grantor, admin_option, inherit_option, set_option FROM pg_auth_members",
            "SELECT oid, rolname::text, rolcanlogin FROM pg_roles",
        )
        return [{tuple(row) for row in await scene.database.ask(query)} for query in queries]

    before = await catalog()
    for turn in range(2):
        checked = await scene.broker.request(*ASKED["check"])
        assert checked.data["ok"], checked
        changed = {**ROLE, "default_ttl": "2h", "revocation_statements": f"SELECT {turn}"}
        assert (await scene.broker.request("PUT", "database/roles/tried", changed)).status == 204
    assert await catalog() == before
    assert await scene.roots() == 1
    for lease in leases:
        assert await scene.database.lets_in(lease.data)
    made = {lease.data["username"] for lease in leases}
    makers = await scene.database.ask(
        "SELECT DISTINCT m.member::regrole::text FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid"
        " WHERE r.rolname = ANY ($1::text[]) AND m.admin_option",
        [*made],
    )
    assert makers
    assert all(row[0].startswith("broker_") for row in makers), makers
    await scene.broker.request("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})
    assert await scene.left() == set()
