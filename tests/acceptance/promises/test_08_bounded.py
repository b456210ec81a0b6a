"""Past a limit the caller hears at once which it was, and the broker stays up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.testing.broker import Broker
from broker.testing.database import Database
from broker.testing.leasing import issue, prepare, write_role
from broker.testing.proxy import Proxy


async def test_promise_8_bounded(tmp_path: Path, database: Database) -> None:
    """Past a limit of leases, work or size the caller hears at once which it was (429 with Retry-After; 413), and all goes on."""
    content = {"leases": {"max_per_token": 3}, "server": {"max_body_bytes": 2_048}, "engines": {"max_in_flight": 2}}
    async with Proxy(database.server.host, database.server.port) as proxy, Broker(tmp_path / "state", content) as broker:
        url = database.server.url_template().replace(str(database.server.port), str(proxy.port))
        await prepare(broker, database.server, max_leases=2, connection_url=url)
        await write_role(broker, "second")
        for role in ("app", "app"):
            await issue(broker, role)
        refused = [await broker.request("GET", "database/creds/app")]
        await issue(broker, "second")
        refused.append(await broker.request("GET", "database/creds/second"))
        assert (await broker.request("PUT", "database/roles/app", b"[" * 4_096)).status == 413
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")
        proxy.stall()
        asked = [asyncio.create_task(broker.request("GET", "database/creds/second")) for _ in range(3)]
        [over], waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused.append(over.result())
        proxy.resume()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert [answer.status for answer in refused] == [429] * 3
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        for answer, limit in zip(refused, ("max_leases", "max_per_token", "max_in_flight"), strict=True):
            assert limit in answer.errors[0]
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")


async def test_promise_8_overload(tmp_path: Path, database: Database) -> None:
    """More requests at once than the broker works on are answered 503 with Retry-After at once; health still answers."""
    async with (
        Proxy(database.server.host, database.server.port) as proxy,
        Broker(tmp_path / "state", {"server": {"max_in_flight": 4}}) as broker,
    ):
        url = database.server.url_template().replace(str(database.server.port), str(proxy.port))
        await prepare(broker, database.server, connection_url=url)
        proxy.stall()
        asked = {asyncio.create_task(broker.request("GET", "database/creds/app")) for _ in range(20)}
        refused = []
        while len(refused) < 16:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
        assert {answer.status for answer in refused} == {503}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert (await broker.request("GET", "sys/health")).status == 200
        proxy.resume()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")
