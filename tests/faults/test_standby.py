"""A standby that fails while a revocation waits for it, or is away for an hour, behind the real daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker import daemon
from broker.clock import SystemClock
from broker.seal.providers import MemoryKey
from broker.testing.broker import CREATE_USER, Broker, connection_to, until
from broker.testing.database import ENDED, Database
from broker.testing.faults import SERVER_FAULTS, frozen
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.standby import Standby
from broker_postgresql import standbys

CONFIG = {"fsync": "off", "wal_level": "replica"}
PATIENCE: dict[str, Any] = {
    "connect_timeout_s": 5,
    "issue_timeout_s": 10,
    "contain_timeout_s": 20,
    "remove_timeout_s": 20,
    "breaker": {"first_open_s": 0.2, "longest_open_s": 0.5},
}
LIMIT_S = 60
MINUTES, MINUTE_MS = 60, 60_000


class Shifted(SystemClock):
    """Broker time that a test may hasten. The wall clock does not go along: the scheduler of the jobs has that of the machine."""

    __slots__ = ("_ahead_ms",)

    def __init__(self) -> None:
        self._ahead_ms = 0
        super().__init__()

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_ms

    def advance(self, by_ms: int) -> None:
        self._ahead_ms += by_ms


@dataclass
class Scene:
    """A broker with a connection that names a standby, and both servers."""

    broker: Broker
    clock: Shifted
    primary: PostgresServer
    standby: Standby
    stack: AsyncExitStack
    before: set[str]

    @property
    def database(self) -> Database:
        return Database(self.primary)

    @property
    def place(self) -> str:
        return f"{self.standby.host}:{self.standby.port}"

    async def issue(self, role: str = "app") -> Any:
        """A lease, as it was answered."""
        answer = await self.broker.request("GET", f"database/creds/{role}")
        assert answer.status == 200, answer
        return answer.body

    async def session(self, server: PostgresServer, lease: Any) -> Any:
        """A session of its user; on the standby once the user has arrived there."""
        opened: Any = None

        async def let_in() -> bool:
            nonlocal opened
            try:
                opened = await Database(server).log_in(lease["data"])
            except asyncpg.InvalidAuthorizationSpecificationError:
                return False
            return True

        await until(let_in, limit_s=LIMIT_S)
        self.stack.callback(opened.terminate)
        return opened

    async def shown(self, lease: Any) -> Any:
        """What the lease says of itself; None when it is gone."""
        answer = await self.broker.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        return answer.data if answer.status == 200 else None

    async def lags(self) -> None:
        """From here on the standby takes in what was committed an hour later only, whatever happens to it."""
        there = Database(self.standby)
        self.stack.push_async_callback(self.catches_up)
        await there.run("ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
        await there.run("SELECT pg_reload_conf()")
        await until(lambda: there.ask("SELECT 1 WHERE current_setting('recovery_min_apply_delay') = '1h'"))

    async def catches_up(self) -> None:
        """It lags no longer than it has to."""
        there = Database(self.standby)
        await there.run("ALTER SYSTEM RESET recovery_min_apply_delay")
        await there.run("SELECT pg_reload_conf()")

    async def names_the_standby(self, lease: Any, why: str) -> None:
        """Waits until the lease says that this standby keeps it from being gone, and why, and what could be done there by hand."""

        async def named() -> bool:
            shown = await self.shown(lease)
            assert shown is not None
            remedy = shown.get("remedy") or [""]
            return f"standby {self.place} {why}" in shown.get("revoke_error", "") and f"/* on {self.place} */" in remedy[-1]

        await until(named, limit_s=LIMIT_S)

    async def is_over(self, lease: Any) -> None:
        """Waits until the lease is gone; its user is, too, and the audit log says so, once."""

        async def over() -> bool:
            return await self.shown(lease) is None

        await until(over, limit_s=LIMIT_S)
        assert not await self.database.has(lease["data"]["username"])
        entries = [json.loads(line) for line in (self.broker.config.store.directory / "audit.log").read_bytes().splitlines()]
        answers = [(entry.get("response") or {}).get("data") or {} for entry in entries if entry["type"] == "response"]
        gone = [data["username"] for data in answers if data.get("time_to_dropped_ms") is not None]
        assert gone.count(lease["data"]["username"]) == 1

    async def roles(self) -> set[str]:
        return {row[0] for row in await self.database.ask("SELECT rolname::text FROM pg_roles")}


async def is_in(session: Any) -> bool:
    """Whether the session goes on."""
    try:
        await session.fetchval("SELECT 1")
    except ENDED:
        return False
    return True


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresServer, Standby]]:
    """A primary and its standby, which these tests may mistreat; the standby is soon back in the stream after either was away."""
    binaries = embedded_binaries()
    assert binaries is not None
    with (
        PostgresServer(binaries, extra_config=CONFIG) as primary,
        Standby(primary, extra_config={"wal_retrieve_retry_interval": "100ms"}) as standby,
    ):
        yield primary, standby


@pytest.fixture
async def scene(
    tmp_path: Path, servers: tuple[PostgresServer, Standby], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    """The role `app`; a standby that was away is asked again soon, and one that lags is waited for until it fails."""
    monkeypatch.setattr(standbys, "_FIRST_AWAY_S", 0.1)
    monkeypatch.setattr(standbys, "_LONGEST_AWAY_S", 0.2)
    monkeypatch.setattr(standbys, "_LAG_S", 60.0)
    primary, standby = servers
    clock = Shifted()
    seams = daemon.Seams(key=MemoryKey(), clock=lambda: clock)
    content = {"engines": PATIENCE, "leases": {"sweep": 3_600, "reconcile": 0, "max_ttl": "720h"}}
    async with AsyncExitStack() as stack, Broker(tmp_path / "state", content, seams=seams) as broker:
        made = Scene(broker, clock, primary, standby, stack, set())
        made.before = await made.roles()
        fields = connection_to(primary, standbys=[made.place], scram_iterations=16)
        assert (await broker.request("PUT", "database/config/pg", fields)).status in {200, 204}
        role = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False}
        for name, ttl in (("app", "720h"), ("brief", "30m")):
            assert (await broker.request("PUT", f"database/roles/{name}", {**role, "default_ttl": ttl})).status == 204
        yield made


# faults: of one of the servers, while a revocation waits for the standby ----------------------------------------------


@pytest.mark.parametrize("fault", SERVER_FAULTS)
@pytest.mark.parametrize("side", ["standby", "primary"])
async def test_server_that_fails_while_the_standby_is_waited_for(
    scene: Scene, side: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers in time, the user stays out; nothing is done before the standby has caught up, then it goes by itself."""
    lease, bystander = await scene.issue(), await scene.issue()
    there, stays = await scene.session(scene.standby, lease), await scene.session(scene.standby, bystander)
    other, failing = Database(scene.standby), scene.standby if side == "standby" else scene.primary
    await scene.lags()
    asked = asyncio.create_task(scene.broker.request("PUT", "sys/leases/revoke", {"lease_id": lease["lease_id"]}))
    # Whoever is in there is told to go at once; then the broker asks again and again how far the standby is.
    asks = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'broker/%' AND query LIKE '%pg_last_wal_replay_lsn%'"
    await until(lambda: other.ask(asks), every_s=0.005)
    monkeypatch.setattr(standbys, "_LAG_S", 0.1)
    async with SERVER_FAULTS[fault](failing):
        assert (await asyncio.wait_for(asked, LIMIT_S)).status in {204, 400, 503}
        if side == "standby" and fault != "restarted":
            await scene.names_the_standby(lease, "can't be reached")
    await until(lambda: answers(scene.database), limit_s=LIMIT_S)
    assert not await scene.database.lets_in(lease["data"])
    await until(lambda: answers(other), limit_s=LIMIT_S)
    # As long as it has not replayed that the login is off, nothing is done.
    await scene.names_the_standby(lease, "has not replayed")
    assert not await other.ask("SELECT 1 FROM pg_roles WHERE rolname = $1 AND NOT rolcanlogin", lease["data"]["username"])
    await scene.catches_up()
    await scene.is_over(lease)
    assert not await is_in(there)
    assert (await scene.shown(bystander))["state"] == "active"
    assert await scene.database.lets_in(bystander["data"])
    if side == "primary" or fault == "frozen":
        assert await is_in(stays)
    assert (await scene.broker.request("PUT", "sys/leases/revoke-prefix/database/creds")).status == 204
    await until(lambda: same_roles(scene), limit_s=LIMIT_S)


async def answers(database: Database) -> bool:
    """Whether a server takes connections and statements."""
    try:
        return bool(await database.ask("SELECT 1"))
    except ENDED:
        return False


async def same_roles(scene: Scene) -> bool:
    """Whether the broker has left no role."""
    return await scene.roles() == scene.before


async def test_standby_is_away_for_an_hour(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end meanwhile are off on the primary at once and say which standby is missing; each is gone when it is back."""
    by_request, by_time, goes_on = await scene.issue(), await scene.issue("brief"), await scene.issue()
    sessions = {id(lease): await scene.session(scene.primary, lease) for lease in (by_request, by_time)}
    there = [await scene.session(scene.standby, lease) for lease in (by_request, by_time)]
    async with frozen(scene.standby):
        asked = await scene.broker.request("PUT", "sys/leases/revoke", {"lease_id": by_request["lease_id"]})
        assert asked.status in {400, 503}, asked
        for minute in range(1, MINUTES + 1):
            scene.clock.advance(MINUTE_MS)
            lease = by_request if minute < 35 else by_time
            if minute in {1, 35, MINUTES}:
                await scene.names_the_standby(lease, "can't be reached")
                assert not await scene.database.lets_in(lease["data"])
                assert not await is_in(sessions[id(lease)])
                assert await scene.database.has(lease["data"]["username"])
        late = await scene.issue()
        assert await scene.database.lets_in(late["data"])

    async def over() -> bool:
        # By itself it is tried again within a quarter of an hour.
        scene.clock.advance(16 * MINUTE_MS)
        return await scene.shown(by_request) is None and await scene.shown(by_time) is None

    await until(over, limit_s=LIMIT_S, every_s=1)
    for lease in (by_request, by_time):
        await scene.is_over(lease)
    for session in there:
        assert not await is_in(session)
    for lease in (goes_on, late):
        assert (await scene.shown(lease))["state"] == "active"
        assert await scene.database.lets_in(lease["data"])


async def test_canary_where_a_standby_is_named(scene: Scene) -> None:
    """A check has its canary revoked on the standby too. While that is away it says so, with the remedy, and the canary goes later."""
    checked = await scene.broker.request("POST", "database/check/pg")
    assert checked.data["ok"], checked
    assert await same_roles(scene)
    async with frozen(scene.standby):
        checked = await scene.broker.request("POST", "database/check/pg")
        assert checked.status == 200, checked
        assert [step["ok"] for step in checked.data["steps"]] == [True, True, True, False]
        last = checked.data["steps"][-1]
        assert f"standby {scene.place}" in last["error"]
        assert f"/* on {scene.place} */" in last["remedy"][-1]
        assert (await scene.database.users((await scene.broker.request("GET", "sys/health")).body["cluster_id"])) == {
            checked.data["username"]: False
        }

    async def passed() -> bool:
        return bool((await scene.broker.request("POST", "database/check/pg")).data["ok"])

    await until(passed, limit_s=LIMIT_S)
    await until(lambda: same_roles(scene), limit_s=LIMIT_S)
