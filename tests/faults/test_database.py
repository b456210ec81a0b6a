"""A database that is down, slow, refusing, restarting, out of connections or read-only, behind the real daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from broker import daemon
from broker.clock import SystemClock
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.testing.broker import CREATE_USER, Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.proxy import Proxy

LOGIN, PASSWORD = "broker_login", "broker-password-1"
BOUND_S = 90
"""In which every request has to be answered, whatever the database does; the broker's own limits below are far shorter."""
PATIENCE: dict[str, Any] = {
    "engines": {
        "connect_timeout_s": 4,
        "issue_timeout_s": 5,
        "contain_timeout_s": 5,
        "remove_timeout_s": 8,
        "breaker": {"first_open_s": 0.2, "longest_open_s": 0.5},
    },
    "leases": {"issue_timeout_s": 10},
}
"""Short, so that the faults take no longer; a busy machine does in this time what a whole server has to answer in."""
TOO_SLOW_S = 6
"""How long a network that is too slow holds each piece of data back: longer than any call may take that needs an answer."""


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server with few connections that these tests may mistreat, and a plain CREATEROLE login for the broker."""
    binaries = embedded_binaries()
    assert binaries is not None
    config = {"fsync": "off", "max_connections": "14", "superuser_reserved_connections": "4", "max_wal_senders": "0"}
    with PostgresServer(binaries, extra_config=config) as server:
        login = f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}'; GRANT pg_signal_backend TO {LOGIN}"
        asyncio.run(Database(server).run(login))
        yield server


@dataclass
class Scene:
    """The broker under test, and what stands behind it."""

    broker: Broker
    proxy: Proxy
    database: Database
    clock: SystemClock
    """The broker's; `raise_to` lets time pass at once."""

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer, within the bound."""
        async with asyncio.timeout(BOUND_S):
            return await self.broker.request(method, path, body)

    async def issue(self, role: str = "app") -> Any:
        """A lease, as it was answered."""
        answer = await self.ask("GET", f"database/creds/{role}")
        assert answer.status == 200, answer
        return answer.body

    async def users(self) -> dict[str, bool]:
        """The broker's users in the database."""
        return await self.database.users((await self.ask("GET", "sys/health")).body["cluster_id"])

    async def state(self, lease: Any) -> str:
        """Where the lease is in its life; empty when it is gone."""
        shown = await self.ask("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        return str(shown.data["state"]) if shown.status == 200 else ""


@pytest.fixture
async def scene(tmp_path: Path, own_server: PostgresServer) -> AsyncIterator[Scene]:
    """A broker with the roles `app` (an hour) and `brief` (half of it), its database reached through a proxy."""
    clock = SystemClock()
    seams = daemon.Seams(key=MemoryKey(), clock=lambda: clock)
    async with Proxy(own_server.host, own_server.port) as proxy, Broker(tmp_path / "state", PATIENCE, seams=seams) as broker:
        url = own_server.url_template().replace(str(own_server.port), str(proxy.port))
        fields = connection_to(own_server, connection_url=url, username=LOGIN, password=PASSWORD, max_open_connections=3)
        # A user that is tried would have been revoked over a connection that is kept.
        fields["verify_connection"] = False
        assert (await broker.request("PUT", "database/config/pg", fields)).status == 204
        for role, ttl in (("app", "1h"), ("brief", "30m")):
            await broker.request(
                "PUT",
                f"database/roles/{role}",
                {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "default_ttl": ttl},
            )
        yield Scene(broker, proxy, Database(own_server), clock)


# faults: each holds for the time of its context -----------------------------------------------------------------------

Fault: TypeAlias = Callable[[Scene], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def down(scene: Scene) -> AsyncIterator[None]:
    server = scene.database.server
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def crashed(scene: Scene) -> AsyncIterator[None]:
    server = scene.database.server
    await asyncio.to_thread(server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def refusing(scene: Scene) -> AsyncIterator[None]:
    await scene.proxy.cut()
    yield
    await scene.proxy.restore()


@asynccontextmanager
async def silent(scene: Scene) -> AsyncIterator[None]:
    scene.proxy.stall()
    yield
    scene.proxy.resume()


@asynccontextmanager
async def too_slow(scene: Scene) -> AsyncIterator[None]:
    scene.proxy.delay_s = TOO_SLOW_S
    yield
    scene.proxy.delay_s = 0


@asynccontextmanager
async def read_only(scene: Scene) -> AsyncIterator[None]:
    """As after a failover to the other side: the server is a standby, until it is promoted."""
    server = scene.database.server
    await asyncio.to_thread(server.stop)
    data = server.directory / "data"
    sign = data / "standby.signal"
    sign.touch()
    os.chown(sign, data.stat().st_uid, data.stat().st_gid)
    await asyncio.to_thread(server.start)
    try:
        yield
    finally:
        await scene.database.ask("SELECT pg_promote()")


@asynccontextmanager
async def out_of_connections(scene: Scene) -> AsyncIterator[None]:
    server = scene.database.server
    dsn = server.dsn(LOGIN, Secret(PASSWORD)).reveal()
    async with AsyncExitStack() as hogs:
        while True:
            await scene.database.ask(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name LIKE 'broker/%'"
            )
            try:
                hogs.push_async_callback((await asyncpg.connect(dsn)).close)
            except asyncpg.TooManyConnectionsError:
                break
        yield


FAULTS: dict[str, Fault] = {
    "down": down,
    "crashed": crashed,
    "refusing": refusing,
    "silent": silent,
    "too slow": too_slow,
    "read-only": read_only,
    "out of connections": out_of_connections,
}
faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())


@faults
async def test_issue_says_what_is_wrong_and_leaves_nothing(scene: Scene, fault: Fault) -> None:
    """503 with Retry-After that names the connection, within the bound; and no user of it is left once the database is back."""
    async with fault(scene):
        refused = [await scene.ask("GET", "database/creds/app") for _ in range(3)]
        assert [answer.status for answer in refused] == [503] * 3, refused
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert all("connection pg" in answer.errors[0] for answer in refused), refused
        assert (await scene.ask("GET", "database/roles/app")).status == 200

    async def nothing_left() -> bool:
        listed = await scene.ask("LIST", "sys/leases/lookup/database/creds/app")
        return listed.status == 404 and not await scene.users()

    await until(nothing_left, limit_s=60)

    async def works_again() -> bool:
        return bool((await scene.ask("GET", "database/creds/app")).status == 200)

    await until(works_again)
    await scene.ask("PUT", "sys/leases/revoke-prefix/database/creds")
    assert await scene.users() == {}


@faults
async def test_revocation_keeps_its_place(scene: Scene, fault: Fault) -> None:
    """Asked for or due while the database is away, a revocation is remembered, and done when the database is back."""
    asked, expiring = await scene.issue(), await scene.issue("brief")
    async with fault(scene):
        scene.clock.raise_to(scene.clock.now_ms() + 1_800_000)
        answer = await scene.ask("PUT", "sys/leases/revoke", {"lease_id": asked["lease_id"]})
        assert answer.status == 503, answer
        assert int(answer.headers["Retry-After"]) >= 1
        assert await scene.state(asked) == "revoking"
        # What falls due meanwhile is not lost either, nor given up as stuck.
        assert await scene.state(expiring) in ("active", "revoking")

    async def both_gone() -> bool:
        return not await scene.state(asked) and not await scene.state(expiring)

    await until(both_gone, limit_s=60)
    assert await scene.users() == {}


async def test_slow_is_only_slow(scene: Scene) -> None:
    """A database that answers late, but within the limits, costs time and nothing else."""
    scene.proxy.delay_s = 0.025
    lease = await scene.issue()
    assert await scene.database.lets_in(lease["data"])
    assert (await scene.ask("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"], "increment": "2h"})).status == 200
    assert (await scene.ask("PUT", "sys/leases/revoke", {"lease_id": lease["lease_id"]})).status == 204
    assert await scene.users() == {}


async def test_restart_between_two_requests_costs_at_most_one(scene: Scene) -> None:
    """Connections that a restart ended are noticed: a lease can be had again at once or after a single 503."""
    first = await scene.issue()
    await asyncio.to_thread(scene.database.server.restart)
    answers = [(await scene.ask("GET", "database/creds/app")).status for _ in range(2)]
    assert answers[1] == 200, answers
    assert (await scene.ask("PUT", "sys/leases/revoke", {"lease_id": first["lease_id"]})).status == 204
    await scene.ask("PUT", "sys/leases/revoke-prefix/database/creds")
    assert await scene.users() == {}


async def test_renewal_without_its_database_changes_nothing(scene: Scene) -> None:
    """A renewal that can't reach the database is refused, and the lease ends when it would have."""
    lease = await scene.issue()
    async with refusing(scene):
        answer = await scene.ask("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"], "increment": "2h"})
        assert answer.status == 503, answer
        shown = await scene.ask("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        assert shown.data["ttl"] <= 3_600
        assert shown.data["last_renewal"] is None
    await scene.ask("PUT", "sys/leases/revoke-prefix/database/creds")


async def test_one_dead_database_hinders_no_other(scene: Scene, tmp_path: Path) -> None:
    """While one connection hangs, leases of another are issued and revoked."""
    own = scene.database.server
    fields = connection_to(own, username=LOGIN, password=PASSWORD, max_open_connections=2)
    await scene.ask("PUT", "database/config/other", fields)
    await scene.ask("PUT", "database/roles/other", {"db_name": "other", "creation_statements": CREATE_USER, "rehearse": False})
    hanging = await scene.issue()
    scene.proxy.stall()
    stalled = [asyncio.create_task(scene.ask("GET", "database/creds/app")) for _ in range(3)]
    stalled.append(asyncio.create_task(scene.ask("PUT", "sys/leases/revoke", {"lease_id": hanging["lease_id"]})))
    for _ in range(3):
        lease = await scene.issue("other")
        assert (await scene.ask("PUT", "sys/leases/revoke", {"lease_id": lease["lease_id"]})).status == 204
    assert {answer.status for answer in await asyncio.gather(*stalled)} == {503}
    scene.proxy.resume()

    async def clean() -> bool:
        return not await scene.users()

    await until(clean, limit_s=60)
