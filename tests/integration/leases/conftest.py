"""A whole lease room over a real store and a real audit log, with a database in memory; it can be killed at any call.

`Rig.boot` is one life of the process. Every call that the room makes to the store, the audit log or an engine passes `Rig.at`
before and after it is carried out: there a test makes it fail, wait, or be the last thing that the process did.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from broker.api.database import ConnectionWrite, RoleWrite
from broker.audit.devices.file import FileDevice
from broker.audit.entry import NOBODY, AuditRequest, AuditResponse, Hasher, Scribe
from broker.audit.trail import Trail
from broker.audit.verify import verify
from broker.catalog.catalog import Catalog
from broker.catalog.connections import Connection
from broker.catalog.engines import OpenEngines
from broker.engines.guard import Guard
from broker.engines.protocol import Health, Origin
from broker.engines.registry import Claim, Registry
from broker.engines.settings import EngineSettings
from broker.ids import Numbers, PublicIds
from broker.leases import records
from broker.leases.clockwatch import ClockWatch
from broker.leases.expire import Expirer
from broker.leases.failover import Failover
from broker.leases.issue import Ask, Issued, Issuer
from broker.leases.parts import Parts
from broker.leases.prepare import Pools
from broker.leases.pump import Pump
from broker.leases.query import Query
from broker.leases.recover import Recovery
from broker.leases.refill import Refill
from broker.leases.renew import Renewer
from broker.leases.revoke import Revoker
from broker.leases.settings import LeaseSettings
from broker.leases.tidy import Tidier
from broker.leases.users import Markers
from broker.leases.witness import Witness
from broker.metrics import Metrics
from broker.model import NO_TOKEN, Accessor, Lease, LeaseNumber, LeaseState, Token, TokenFacts, TokenNumber
from broker.seal.keyring import Purpose
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead
from broker.testing.clock import ManualClock
from broker.testing.device import FOR_EVER, BreakableDevice
from broker.testing.engine import MemoryEngine, MemoryPlugin, MemoryServer
from broker.testing.points import Hooked, Points

MASTER_KEY = b"m" * 32
PLUGIN = "memory-database-plugin"
LIVE = (LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.REVOKING, LeaseState.STUCK)


class RestartingEngine(MemoryEngine):
    """An engine whose server may say that it was started anew."""

    def __init__(self, server: MemoryServer, origin: Origin, started: Callable[[], str]) -> None:
        super().__init__(server, origin)
        self._started = started

    async def health(self) -> Health:
        return replace(await super().health(), started=self._started())


@dataclass(slots=True)
class Boot:
    """One life of the process."""

    sqlite: SqliteStore
    device: BreakableDevice
    trail: Trail
    catalog: Catalog
    parts: Parts
    pools: Pools
    pump: Pump
    issuer: Issuer
    renewer: Renewer
    expirer: Expirer
    revoker: Revoker
    recovery: Recovery
    failover: Failover
    refill: Refill
    query: Query
    tidier: Tidier
    witness: Witness
    clockwatch: ClockWatch
    highest: LeaseNumber


class Rig(Points):
    """The room's parts, what surrounds them, and the hand that breaks them."""

    def __init__(self, directory: Path, settings: LeaseSettings) -> None:
        super().__init__()
        self.directory = directory
        self.settings = settings
        self.clock = ManualClock()
        self.servers: dict[str, MemoryServer] = {}
        self.started: dict[str, str] = {}
        self._boot: Boot | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._foreign = asyncio.all_tasks()

    # life -----------------------------------------------------------------------------------------------------------

    @property
    def boot(self) -> Boot:
        assert self._boot is not None
        return self._boot

    async def start(self) -> Boot:
        self.dead, self.kill_at = False, None
        sqlite = await SqliteStore.open(self.directory / "store", MASTER_KEY, self.clock)
        store: Any = Hooked(sqlite, "store", self.at)
        audit_key = sqlite.keyring.subkey(Purpose.AUDIT)
        device = BreakableDevice(FileDevice(self.directory / "audit.log"))
        trail = await Trail.open(
            device,
            audit_key,
            await sqlite.audit_head(),
            lambda sequence, mac: sqlite.confirm_audit(AuditHead(sequence, mac)),
            clock=self.clock,
        )
        highest = await sqlite.highest_number()
        registry = Registry([Claim("memory", "tests", lambda: MemoryPlugin(self.server()))])
        metrics = Metrics()
        origin = Origin(broker=sqlite.broker_id, boot=os.urandom(4).hex())

        def build(connection: Connection) -> Guard:
            name = connection.name
            server = self.server(str(connection.details.get("connection_url", name)))
            engine = RestartingEngine(server, origin, lambda: self.started.get(name, "1"))
            hooked: Any = Hooked(engine, name, self.at)
            return Guard(hooked, name, EngineSettings(), metrics, self.clock)

        catalog = Catalog(store, registry, OpenEngines(build))
        await catalog.refresh()
        parts = Parts(
            store=store,
            trail=Hooked(trail, "audit", self.at),  # type: ignore[arg-type]  # it stands in for the trail
            catalog=catalog,
            numbers=Numbers(self.clock, above=highest),
            ids=PublicIds(sqlite.keyring.subkey(Purpose.LEASE_ID)),
            markers=Markers(sqlite.broker_id, sqlite.keyring.subkey(Purpose.MARKER)),
            scribe=Scribe(Hasher(audit_key), clear_keys=records.CLEAR_KEYS),
            settings=self.settings,
            metrics=metrics,
            wake_expiry=self._wake,
        )
        pools, pump = Pools(parts), Pump(parts)
        issuer, witness, failover = Issuer(parts, pools, pump), Witness(parts, {}), Failover(parts)
        expirer = Expirer(parts, witness)
        self._boot = Boot(
            sqlite=sqlite,
            device=device,
            trail=trail,
            catalog=catalog,
            parts=parts,
            pools=pools,
            pump=pump,
            issuer=issuer,
            renewer=Renewer(parts, issuer),
            expirer=expirer,
            revoker=Revoker(parts, expirer),
            recovery=Recovery(parts, pump, failover),
            failover=failover,
            refill=Refill(parts, pools),
            query=Query(parts),
            tidier=Tidier(parts),
            witness=witness,
            clockwatch=ClockWatch(parts, self.clock),
            highest=LeaseNumber(highest),
        )
        await self._boot.refill.forget_unknown_roles()
        return self._boot

    async def kill(self) -> None:
        """Ends the process as SIGKILL would: nothing is tidied up; what only memory knew is lost."""
        self.dead = True
        boot, self._boot = self.boot, None
        await self._end_tasks()
        await boot.trail.close()
        vitals = boot.sqlite._vitals
        vitals.insist = lambda: None  # type: ignore[method-assign]  # a dead process notes nothing on its way out
        vitals.head = vitals._saved_head
        await boot.sqlite.close()

    async def crash_and_recover(self) -> Boot:
        """A kill, a start, and the start's recovery."""
        await self.kill()
        boot = await self.start()
        await boot.recovery.at_start(boot.highest)
        return boot

    async def stop(self) -> None:
        """Ends the process in order."""
        if self._boot is None:
            return
        self.plans.clear()
        self.kill_at = None
        boot, self._boot = self._boot, None
        await boot.expirer.stop()
        await self._end_tasks()
        await boot.catalog.close()
        await boot.trail.close()
        await boot.sqlite.close()

    async def _end_tasks(self) -> None:
        foreign = {*self._foreign, asyncio.current_task()}
        while others := [task for task in asyncio.all_tasks() if task not in foreign]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    # what may go wrong ----------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Nothing goes wrong any longer."""
        self.plans.clear()
        self.boot.device.flushes_left = FOR_EVER

    # what is there --------------------------------------------------------------------------------------------------

    def server(self, name: str = "main") -> MemoryServer:
        """The database of a connection: the one at its `connection_url`, or the one that has the connection's name."""
        if name not in self.servers:
            self.servers[name] = MemoryServer(self.clock)
        return self.servers[name]

    async def connection(self, name: str = "main", **fields: Any) -> list[str]:
        """Writes a connection that every role may use, and answers the warnings."""
        write = ConnectionWrite.model_validate({"plugin_name": PLUGIN, "allowed_roles": "*"} | fields)
        return await self.boot.catalog.write_connection(name, write)

    async def role(self, name: str = "app", **fields: Any) -> None:
        """Writes a role; unless told otherwise on the connection `main`."""
        write = RoleWrite.model_validate({"db_name": "main", "creation_statements": "make"} | fields)
        await self.boot.catalog.write_role(name, write)

    async def token(self, ttl_s: int | None = None, parent: TokenNumber = NO_TOKEN) -> TokenNumber:
        """A token that never ends, or ends `ttl_s` from now."""
        number = TokenNumber(self.boot.parts.numbers.next())
        assert await self.boot.sqlite.add_token(replace(self._token(number), parent=parent), ttl_s=ttl_s)
        return number

    def _token(self, number: TokenNumber) -> Token:
        facts = TokenFacts(accessor=Accessor("a"), policies=("root",), display_name="token", path="auth/token/create")
        return Token(number=number, parent=NO_TOKEN, expires_ms=None, uses_left=None, digest=b"d" * 32, facts=facts)

    def ask(self, token: TokenNumber, role: str = "app", key: str = "", owner: Token | None = None) -> Ask:
        """What a caller with this token asks; the lease is its own unless another owner is named."""
        scribe, clock = self.boot.parts.scribe, self.clock
        request: AuditRequest = records.new_request("read", f"database/creds/{role}")

        def response_entry(issued: Issued) -> bytes:
            response = AuditResponse(lease_id=issued.lease_id, data={"username": issued.username, "password": issued.password})
            return scribe.response(clock.now_ms(), scribe.asked(NOBODY, request), response)

        return Ask(
            role=role,
            mount="database",
            token=token,
            owner=owner or self._token(token),
            display_name="token",
            idempotency_key=key,
            request_entry=scribe.request(clock.now_ms(), scribe.asked(NOBODY, request)),
            response_entry=response_entry,
        )

    async def issue(self, token: TokenNumber, role: str = "app", key: str = "") -> Issued:
        """A lease for this token."""
        found = await self.boot.sqlite.token(token)
        return await self.boot.issuer.issue(self.ask(token, role, key, found))

    async def fill(self) -> None:
        """Refills every pool to its size."""
        while await self.boot.refill.run():
            pass

    async def lease(self, lease_id: str) -> Lease:
        """The stored lease."""
        number = self.boot.parts.ids.lease_number(lease_id)
        assert number is not None
        found = await self.boot.sqlite.lease(number)
        assert found is not None
        return found

    async def leases(self, *states: LeaseState) -> list[Lease]:
        """All leases in these states, or in any."""
        return list(await self.boot.sqlite.leases_in(states or tuple(LeaseState), after=LeaseNumber(0), limit=10_000))

    def can_log_in(self, issued: Issued, connection: str = "main") -> bool:
        """Whether the user logs in with its password now; the session is closed again."""
        session = self.server(connection).log_in(issued.username, issued.password)
        if session is not None:
            self.server(connection).accounts[issued.username].sessions.discard(session)
        return session is not None

    # how it goes on -------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self.dead and self._boot is not None:
            task = asyncio.get_running_loop().create_task(self._boot.expirer.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def expire(self) -> None:
        """One look at what is due, to its end."""
        await asyncio.gather(*self._tasks)
        await self.boot.expirer.run()
        await asyncio.gather(*list(self.boot.expirer._drains.values()))

    async def handed_out(self) -> None:
        """Lets what is being handed out come to its end, also where its caller has left."""
        for lane in self.boot.pump._lanes.values():
            await asyncio.gather(*lane._running)

    async def settle_down(self, rounds: int = 400) -> None:
        """Runs expiry, with time passing, until nothing is half done."""
        half_done = (LeaseState.RESERVED, LeaseState.PREPARING, LeaseState.REVOKING, LeaseState.STUCK)
        await self.handed_out()
        for _ in range(rounds):
            await self.expire()
            if not await self.leases(*half_done):
                return
            self.clock.advance(5_000)
        raise AssertionError([(lease.state, lease.facts.failure) for lease in await self.leases(*half_done)])

    def entries(self) -> list[dict[str, Any]]:
        """The audit log as it is on disc."""
        return [orjson.loads(line) for line in (self.directory / "audit.log").read_bytes().splitlines()]

    async def check(self, answered: list[Issued]) -> None:
        """The invariants that hold once everything has settled, whatever happened before."""
        leases = {lease.facts.username: lease for lease in await self.leases()}
        for server in self.servers.values():
            for name, account in server.accounts.items():
                assert name in leases, f"{name} is unknown to the store"
                state = leases[name].state
                assert state in (LeaseState.ACTIVE, LeaseState.PREPARED), f"{name} outlived its lease"
                assert state is LeaseState.ACTIVE or not account.can_login, f"{name} can log in and is not active"
        for lease in leases.values():
            assert lease.state in (LeaseState.ACTIVE, LeaseState.PREPARED, LeaseState.GONE)
            assert lease.state is not LeaseState.GONE or lease.facts.password is None
        await self.check_audit(answered)

    async def check_audit(self, answered: list[Issued]) -> None:
        """The chain is whole, and every answer stands in it behind its request."""
        await self.boot.sqlite.barrier()
        head = await self.boot.sqlite.audit_head()
        report = verify([self.directory / "audit.log"], self.boot.sqlite.keyring.subkey(Purpose.AUDIT), head)
        assert report.intact, report.flaw
        requests, responses = {}, {}
        for position, entry in enumerate(self.entries()):
            if entry["type"] == "request":
                requests.setdefault(entry["request"]["id"], position)
            elif "secret" in entry.get("response", {}) and entry["request"]["operation"] == "read":
                responses[entry["response"]["secret"]["lease_id"]] = (position, entry["request"]["id"])
        for issued in answered:
            position, request_id = responses[issued.lease_id]
            assert requests[request_id] < position


@pytest.fixture
def settings() -> LeaseSettings:
    return LeaseSettings()


@pytest.fixture
async def rig(tmp_path: Path, settings: LeaseSettings) -> AsyncIterator[Rig]:
    """A started rig with the connection `main` and the role `app` (on demand)."""
    made = Rig(tmp_path, settings)
    await made.start()
    await made.connection()
    await made.role()
    yield made
    await made.stop()


@pytest.fixture
async def token(rig: Rig) -> TokenNumber:
    """A token that never ends."""
    return await rig.token()


@pytest.fixture
async def make_rig() -> AsyncIterator[Callable[[Path, LeaseSettings], Awaitable[Rig]]]:
    """Makes rigs with a token, an active lease (`standing`) and a role `pooled` with four prepared users; stops them at the end."""
    made: list[Rig] = []

    async def make(directory: Path, settings: LeaseSettings) -> Rig:
        directory.mkdir()
        rig = Rig(directory, settings)
        made.append(rig)
        await rig.start()
        await rig.connection()
        await rig.role()
        await rig.role("pooled", prepared_users=4)
        rig.owner = await rig.token()  # type: ignore[attr-defined]  # for tests that need one
        rig.standing = await rig.issue(rig.owner)  # type: ignore[attr-defined]
        await rig.fill()
        rig.passed.clear()
        return rig

    yield make
    for rig in made:
        await rig.stop()
