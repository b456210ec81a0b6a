"""A real primary and standby behind the whole broker: the primary killed or frozen, the standby promoted without its last commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.errors import DatabaseUnavailable
from broker.testing.broker import CREATE_USER, Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.faults import freeze, thaw
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.standby import Standby

CONFIG = {"fsync": "off", "wal_level": "replica"}
EXPIRES_LATE = "SELECT 1 FROM pg_roles WHERE rolname = $1 AND rolvaliduntil > now() + interval '4 h'"
PATIENCE: dict[str, Any] = {
    "engines": {"connect_timeout_s": 8, "issue_timeout_s": 8, "contain_timeout_s": 8, "breaker": {"longest_open_s": 0.5}}
}


@dataclass
class Scene:
    """A broker with two hosts, and both of them."""

    broker: Broker
    primary: PostgresServer
    standby: Standby

    async def issue(self, role: str = "app") -> Any:
        """A lease, as it was answered."""
        answer = await self.broker.request("GET", f"database/creds/{role}")
        assert answer.status == 200, answer
        return answer.body

    async def fail_over(self, how: str) -> None:
        """The primary dies or hangs, the standby takes over."""
        if how == "killed":
            await asyncio.to_thread(self.primary.kill)
        else:
            freeze(self.primary)
        await asyncio.to_thread(self.standby.promote)

    async def checked(self) -> bool:
        """Whether all leases were checked after the standby was promoted."""
        return bool(self.broker.daemon.catalog.connections()[0].timeline == "2")

    async def works(self) -> bool:
        """Whether leases are to be had."""
        return bool((await self.broker.request("GET", "database/creds/app")).status == 200)

    async def state(self, lease: Any) -> str:
        """Where the lease is in its life; empty when it is gone."""
        shown = await self.broker.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        return str(shown.data["state"]) if shown.status == 200 else ""


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """The primary is the first host; a role on demand and one with prepared users."""
    binaries = embedded_binaries()
    assert binaries is not None
    async with (
        PostgresServer(binaries, extra_config=CONFIG) as primary,
        Standby(primary) as standby,
        Broker(tmp_path / "state", PATIENCE) as broker,
    ):
        both = f"{primary.host}:{primary.port},{standby.host}:{standby.port}"
        url = primary.url_template().replace(f"{primary.host}:{primary.port}", both)
        written = await broker.request("PUT", "database/config/pg", connection_to(primary, connection_url=url))
        assert written.status in (200, 204), written
        for role, ahead in (("app", 0), ("pooled", 3)):
            fields = {"db_name": "pg", "creation_statements": CREATE_USER, "default_ttl": "1h", "prepared_users": ahead}
            await broker.request("PUT", f"database/roles/{role}", fields)
        made = Scene(broker, primary, standby)
        await until(lambda: Database(primary).ask("SELECT 1 FROM pg_roles WHERE NOT rolcanlogin AND rolname ~ '^v-' OFFSET 2"))
        try:
            yield made
        finally:
            if primary.running:
                thaw(primary)


@pytest.mark.parametrize("load", ["idle", "under load"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_what_an_asynchronous_failover_undid_is_put_right(scene: Scene, how: str, load: str) -> None:
    """A user that was dropped is back and revoked again; one that was issued is lost and its lease ends; a lost login is on again.

    So is an expiry that a lost renewal had moved, and prepared users that were lost are given to nobody.
    """
    dropped, kept = await scene.issue(), await scene.issue()
    await scene.standby.cut_off()
    await scene.broker.request("PUT", "sys/leases/revoke", {"lease_id": dropped["lease_id"], "sync": True})
    lost, enabled = await scene.issue(), await scene.issue("pooled")
    renewed = await scene.broker.request("PUT", "sys/leases/renew", {"lease_id": kept["lease_id"], "increment": "5h"})
    assert renewed.body["lease_duration"] > 4 * 3_600

    async def settled() -> bool:
        # From here on only the change of the server tells that the login may be lost.
        return not await scene.broker.daemon.store.unsettled(1)

    await until(settled)
    old, new = Database(scene.primary), Database(scene.standby)
    assert not await old.has(dropped["data"]["username"])
    assert await new.has(dropped["data"]["username"])
    assert not await new.has(lost["data"]["username"])
    assert not await new.ask(EXPIRES_LATE, kept["data"]["username"])
    # A prepared user took the place of the one that was handed out; it is on the old server alone.
    await until(lambda: old.ask("SELECT 1 FROM pg_roles WHERE NOT rolcanlogin AND rolname ~ '^v-' OFFSET 2"))
    ended = asyncio.Event()

    async def ask() -> None:
        while not ended.is_set():
            await scene.broker.request("GET", "database/creds/app")
            await asyncio.sleep(0.02)

    callers = [asyncio.ensure_future(ask()) for _ in range(3 if load == "under load" else 0)]
    await scene.fail_over(how)
    limit_s = 60

    async def removed() -> bool:
        return not await new.has(dropped["data"]["username"])

    async def over() -> bool:
        return await scene.state(lost) == ""

    await until(removed, limit_s=limit_s)
    await until(over, limit_s=limit_s)
    await until(lambda: new.lets_in(enabled["data"]), limit_s=limit_s)
    await until(lambda: new.ask(EXPIRES_LATE, kept["data"]["username"]), limit_s=limit_s)
    assert await new.lets_in(kept["data"])
    assert await scene.state(enabled) == await scene.state(kept) == "active"
    ended.set()
    await asyncio.gather(*callers)
    metrics = scene.broker.daemon.metrics
    for kind in ("revived", "lost", "restored"):
        assert metrics.failover_findings.labels("pg", kind)._value.get() >= 1
    await until(scene.checked, limit_s=limit_s)
    for role in ("app", "pooled", "pooled", "pooled"):
        fresh = await scene.issue(role)
        assert await new.lets_in(fresh["data"])


async def test_former_primary_that_wakes_is_named_and_not_used(scene: Scene) -> None:
    """When a frozen primary goes on after another took over, the one with the higher timeline stays; health names the other."""
    await scene.issue()
    await scene.fail_over("frozen")
    new = Database(scene.standby)

    async def works() -> bool:
        answer = await scene.broker.request("GET", "database/creds/app")
        return answer.status == 200 and await new.has(answer.body["data"]["username"])

    await until(works, limit_s=60)
    thaw(scene.primary)
    engine = await scene.broker.daemon.catalog.engine_for(scene.broker.daemon.catalog.connection("pg"))

    async def named() -> bool:
        return f":{scene.primary.port} takes writes as well" in "".join((await engine.health()).concerns)

    await until(named, limit_s=60)
    for _ in range(3):
        assert await works()


async def test_former_primary_alone_is_refused_after_a_restart(scene: Scene) -> None:
    """A broker that starts while only the superseded server answers works with nobody, ends no lease, and goes on with the right one."""
    lease = await scene.issue()
    await scene.standby.cut_off()
    await scene.fail_over("frozen")
    await until(scene.works, limit_s=60)
    await until(scene.checked, limit_s=60)
    thaw(scene.primary)
    await scene.broker.__aexit__()
    await asyncio.to_thread(scene.standby.stop)
    await scene.broker.__aenter__()
    for _ in range(3):
        answer = await scene.broker.request("GET", "database/creds/app")
        assert answer.status == 503, answer
    catalog = scene.broker.daemon.catalog
    with pytest.raises(DatabaseUnavailable, match="superseded"):
        await catalog.reopen(catalog.connection("pg"))
    assert await scene.state(lease) == "active"
    await asyncio.to_thread(scene.standby.restart)
    await until(scene.works, limit_s=60)
    assert await Database(scene.standby).has(lease["data"]["username"])


async def test_deleted_connection_at_a_superseded_server_is_reset(scene: Scene) -> None:
    """Where the server that took over is lost, leases of a deleted connection wait; a reset of its name has them end at the former."""
    lease, old = await scene.issue(), Database(scene.primary)
    await scene.standby.cut_off()
    await scene.fail_over("frozen")
    await until(scene.works, limit_s=60)
    await until(scene.checked, limit_s=60)
    await asyncio.to_thread(scene.standby.stop)
    thaw(scene.primary)
    assert (await scene.broker.request("DELETE", "database/config/pg")).status == 204
    refused = await scene.broker.request("PUT", "sys/leases/revoke", {"lease_id": lease["lease_id"], "sync": True})
    assert refused.status >= 400, refused
    assert await old.lets_in(lease["data"])
    reset = await scene.broker.request("PUT", "database/reset/pg")
    assert reset.status == 204, reset

    async def over() -> bool:
        return await scene.state(lease) == ""

    await until(over, limit_s=60)
    assert not await old.has(lease["data"]["username"])
    await scene.broker.request("PUT", "sys/leases/revoke-prefix/database/creds/app", {"sync": True})
    await scene.broker.request("PUT", "sys/leases/revoke-prefix/database/creds/pooled", {"sync": True})
    await until(lambda: old.ask("SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname ~ '^v-')"), limit_s=60)


@pytest.mark.parametrize("restarted", [False, True])
async def test_copy_of_the_primary_does_not_take_its_place(scene: Scene, *, restarted: bool) -> None:
    """A second server on the timeline, which may lack users, is not worked with when the first is away, also after a restart."""
    await scene.issue()
    await scene.standby.cut_off()
    await asyncio.to_thread(scene.standby.stop)
    lost = await scene.issue()
    # A primary's files are started as a primary: what promotion would have told apart is gone.
    (scene.standby.directory / "data" / "standby.signal").unlink()
    await asyncio.to_thread(scene.primary.stop)
    await asyncio.to_thread(scene.standby.start)
    copy = Database(scene.standby)
    assert not await copy.has(lost["data"]["username"])
    if restarted:
        await scene.broker.__aexit__()
        await scene.broker.__aenter__()
    for _ in range(3):
        answer = await scene.broker.request("GET", "database/creds/app")
        assert answer.status == 503, answer
    assert await scene.state(lost) == "active"
    await asyncio.to_thread(scene.standby.stop)
    await asyncio.to_thread(scene.primary.start)
    await until(scene.works, limit_s=60)
    assert await Database(scene.primary).lets_in(lost["data"])
    # Of both, the one that has the users is known, by a broker too that starts only now.
    await asyncio.to_thread(scene.standby.start)
    await scene.broker.__aexit__()
    await scene.broker.__aenter__()
    lease = await scene.issue()
    assert await Database(scene.primary).lets_in(lease["data"])
