"""The server that took over dies, hangs or restarts while the broker checks its leases there: the check begins again, and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker import daemon
from broker.seal.providers import MemoryKey
from broker.testing.broker import CREATE_USER, Broker, connection_to, until
from broker.testing.database import Database
from broker.testing.faults import SERVER_FAULTS, Interposed
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.standby import Standby
from broker.testing.trap import Snare, Trap

CONFIG = {"fsync": "off", "wal_level": "replica"}
PATIENCE: dict[str, Any] = {
    "connect_timeout_s": 3,
    "issue_timeout_s": 3,
    "contain_timeout_s": 3,
    "list_timeout_s": 3,
    "breaker": {"first_open_s": 0.2, "longest_open_s": 0.5},
}
BOUND_S = 60
LIMIT_S = 60
EXPIRES_LATE = "SELECT 1 FROM pg_roles WHERE rolname = $1 AND rolvaliduntil > now() + interval '4 h'"
MOMENTS = {
    "users looked up": Snare("look_up", "LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE"),
    "expiry applied again": Snare("extend", "LOCK TABLE pg_authid IN SHARE MODE"),
}


@dataclass
class Scene:
    """A broker with two hosts, a trap at the second, and both of them."""

    broker: Broker
    trap: Trap
    primary: PostgresServer
    standby: Standby

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer, within the bound."""
        async with asyncio.timeout(BOUND_S):
            return await self.broker.request(method, path, body)

    async def issue(self) -> Any:
        """A lease, as it was answered."""
        answer = await self.ask("GET", "database/creds/app")
        assert answer.status == 200, answer
        return answer.body

    async def state(self, lease: Any) -> str:
        """Where the lease is in its life; empty when it is gone."""
        shown = await self.ask("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        return str(shown.data["state"]) if shown.status == 200 else ""

    async def checked(self, timeline: str = "2") -> bool:
        """Whether all leases were checked on this timeline; on the first one they need not be."""
        return bool(self.broker.daemon.catalog.connections()[0].timeline == timeline)

    def findings(self) -> list[dict[str, int]]:
        """What the audit log says that checks found."""
        log = self.broker.config.store.directory / "audit.log"
        entries = [json.loads(line) for line in log.read_bytes().splitlines()]
        answers = [
            entry["response"].get("data") or {} for entry in entries if entry["type"] == "response" and "response" in entry
        ]
        return [data for data in answers if "revived" in data]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """The primary is the first host."""
    binaries = embedded_binaries()
    assert binaries is not None
    async with PostgresServer(binaries, extra_config=CONFIG) as primary, Standby(primary) as standby:
        trap = Trap(standby)
        seams = daemon.Seams(key=MemoryKey(), engine=lambda engine: Interposed(engine, trap.before))
        content = {"engines": PATIENCE, "leases": {"sweep": 3_600, "reconcile": 0}}
        async with Broker(tmp_path / "state", content, seams=seams) as broker:
            both = f"{primary.host}:{primary.port},{standby.host}:{standby.port}"
            url = primary.url_template().replace(f"{primary.host}:{primary.port}", both)
            fields = connection_to(primary, connection_url=url, scram_iterations=16)
            assert (await broker.request("PUT", "database/config/pg", fields)).status in {200, 204}
            role = {"db_name": "pg", "creation_statements": CREATE_USER, "default_ttl": "1h", "rehearse": False}
            assert (await broker.request("PUT", "database/roles/app", role)).status == 204
            yield Scene(broker, trap, primary, standby)
            trap.open()


@pytest.mark.parametrize(
    ("moment", "fault"), [*(("users looked up", fault) for fault in SERVER_FAULTS), ("expiry applied again", "killed")]
)
async def test_new_primary_that_fails_while_its_leases_are_checked(scene: Scene, moment: str, fault: str) -> None:
    """What the failover undid is put right all the same and told once; the broker answers meanwhile, and who lost nothing stays."""
    dropped, kept, bystander = [await scene.issue() for _ in range(3)]
    await until(lambda: scene.checked("1"))
    await scene.standby.cut_off()
    revoked = await scene.ask("PUT", "sys/leases/revoke", {"lease_id": dropped["lease_id"], "sync": True})
    assert revoked.status == 204, revoked
    lost = await scene.issue()
    renewed = await scene.ask("PUT", "sys/leases/renew", {"lease_id": kept["lease_id"], "increment": "5h"})
    assert renewed.body["lease_duration"] > 4 * 3_600
    new = Database(scene.standby)
    assert await new.has(dropped["data"]["username"])
    assert not await new.has(lost["data"]["username"])
    assert not await new.ask(EXPIRES_LATE, kept["data"]["username"])
    scene.trap.set(MOMENTS[moment])
    await asyncio.to_thread(scene.primary.kill)
    await asyncio.to_thread(scene.standby.promote)
    await scene.trap.caught()
    assert not await scene.checked()
    async with SERVER_FAULTS[fault](scene.standby):
        assert (await scene.ask("GET", "database/creds/app")).status in {200, 503}
    scene.trap.open()

    async def over() -> bool:
        return not await scene.state(lost) and not await scene.state(dropped)

    await until(scene.checked, limit_s=LIMIT_S)
    await until(over, limit_s=LIMIT_S)
    assert not await new.has(dropped["data"]["username"])
    assert await new.ask(EXPIRES_LATE, kept["data"]["username"])
    for lease in (kept, bystander):
        assert await scene.state(lease) == "active"
        assert await new.lets_in(lease["data"])
    assert scene.findings() == [{"revived": 1, "lost": 1, "restored": 1}]
    assert await new.lets_in((await scene.issue())["data"])
