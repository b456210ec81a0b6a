"""Builds the rooms, the lowest first; each function takes what stands below it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from broker.audit.devices.file import FileDevice
from broker.audit.devices.protocol import AuditDevice
from broker.audit.devices.stdout import StdoutDevice
from broker.audit.entry import Hasher, Scribe
from broker.audit.resume import Finding, Resumption
from broker.audit.trail import Trail
from broker.catalog.catalog import Catalog
from broker.catalog.connections import Connection
from broker.catalog.engines import OpenEngines
from broker.clock import Clock
from broker.config import Config
from broker.daemon.places import ROOT_TOKEN_FILE, check_places, master_key, root_token_keeper
from broker.daemon.seams import Seams
from broker.engines.guard import Guard
from broker.engines.protocol import Origin
from broker.engines.registry import Registry
from broker.identity.cache import TokenCache
from broker.identity.callers import Callers
from broker.identity.gate import Gate
from broker.identity.tokens import Parts as TokenParts
from broker.identity.tokens import Tokens
from broker.ids import Numbers, PublicIds
from broker.jobs import LONGEST_SLEEP_MS, Job, Jobs
from broker.leases import records
from broker.leases.backlog import BacklogWatch
from broker.leases.bursts import BurstWatch
from broker.leases.canary import Canary
from broker.leases.clockwatch import ClockWatch
from broker.leases.drain import Drainer
from broker.leases.expire import Expirer
from broker.leases.failover import Failover
from broker.leases.issue import Issuer
from broker.leases.outlook import Outlooks
from broker.leases.parts import Parts
from broker.leases.prepare import Pools
from broker.leases.pump import Pump
from broker.leases.query import Query
from broker.leases.reconcile import Reconciler
from broker.leases.recover import Recovery
from broker.leases.refill import Refill
from broker.leases.renew import Renewer
from broker.leases.revoke import Revoker
from broker.leases.sweep import Sweeper
from broker.leases.tidy import Tidier
from broker.leases.trial import Trials
from broker.leases.users import Markers
from broker.leases.witness import Witness
from broker.metrics import Metrics
from broker.seal.keyring import Keyring, Purpose
from broker.secret import Secret, random_bytes
from broker.server.services import Facts, Services
from broker.store.protocol import Store
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead

log = structlog.get_logger(__name__)

_TOKENS_A_TIME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every room stands on: the configuration, the open store with its keys, clock and counters."""

    config: Config
    seams: Seams
    clock: Clock
    store: Store
    keyring: Keyring
    origin: Origin
    highest: int
    """The highest row number so far; 0 in a new store."""
    numbers: Numbers
    ids: PublicIds
    metrics: Metrics

    @property
    def hasher(self) -> Hasher:
        """Of what the audit log shows as a keyed hash."""
        return Hasher(self.keyring.subkey(Purpose.AUDIT))


async def open_ground(config: Config, seams: Seams, opened: contextlib.AsyncExitStack) -> Ground:
    check_places(config)
    clock = seams.clock()
    sqlite = await SqliteStore.open(config.store.directory, master_key(config, seams), clock)
    opened.push_async_callback(sqlite.close)
    store = seams.store(sqlite)
    highest = await store.highest_number()
    return Ground(
        config=config,
        seams=seams,
        clock=clock,
        store=store,
        keyring=sqlite.keyring,
        origin=new_origin(sqlite),
        highest=highest,
        numbers=Numbers(clock, above=highest),
        ids=PublicIds(sqlite.keyring.subkey(Purpose.LEASE_ID)),
        metrics=Metrics(),
    )


async def open_trail(ground: Ground, opened: contextlib.AsyncExitStack) -> Trail:
    settings = ground.config.audit
    path = settings.path or ground.config.store.directory / "audit.log"
    device: AuditDevice = StdoutDevice() if settings.device == "stdout" else FileDevice(path)
    trail = await Trail.open(
        ground.seams.device(device),
        ground.keyring.subkey(Purpose.AUDIT),
        await ground.store.audit_head(),
        lambda sequence, mac: ground.store.confirm_audit(AuditHead(sequence, mac)),
        clock=ground.clock,
        waiting_max=settings.waiting_max,
    )
    opened.push_async_callback(trail.close)
    _tell(trail.resumption, device)
    return trail


def _tell(found: Resumption, device: AuditDevice) -> None:
    """Logs what an audit log was found like at a start, where somebody should know of it."""
    if found.alert:
        log.error("the audit log is not as it was left", finding=str(found.finding), device=str(device))
    elif found.finding is Finding.ROTATED and isinstance(device, FileDevice):
        log.warning(
            "the audit log begins anew at this start; unless it was rotated while the broker was down, it was taken away",
            device=str(device),
            last_entry=found.link.sequence,
        )


async def open_catalog(ground: Ground, registry: Registry, opened: contextlib.AsyncExitStack) -> Catalog:
    build = engine_builder(ground.config, ground.seams, registry, ground.origin, ground.metrics, ground.clock)
    catalog = Catalog(ground.store, registry, OpenEngines(build))
    opened.push_async_callback(catalog.close)
    await catalog.refresh()
    return catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRoom:
    """The verbs of the room `leases`."""

    parts: Parts
    issuer: Issuer
    expirer: Expirer
    recovery: Recovery
    refill: Refill
    tidier: Tidier
    sweeper: Sweeper
    reconciler: Reconciler
    failover: Failover
    backlog: BacklogWatch
    bursts: BurstWatch
    drainer: Drainer


def lease_room(ground: Ground, trail: Trail, catalog: Catalog, opened: contextlib.AsyncExitStack) -> LeaseRoom:
    parts = Parts(
        store=ground.store,
        trail=trail,
        catalog=catalog,
        numbers=ground.numbers,
        ids=ground.ids,
        markers=Markers(ground.origin.broker, ground.keyring.subkey(Purpose.MARKER)),
        scribe=Scribe(ground.hasher, clear_keys=records.CLEAR_KEYS),
        settings=ground.config.leases,
        metrics=ground.metrics,
    )
    pools, pump = Pools(parts), Pump(parts)
    expirer = Expirer(parts, Witness(parts, {}))
    opened.push_async_callback(expirer.stop)
    failover = Failover(parts)
    opened.push_async_callback(failover.stop)
    sweeper = Sweeper(parts)
    opened.push_async_callback(sweeper.stop)
    reconciler = Reconciler(parts, sweeper)
    opened.push_async_callback(reconciler.stop)
    return LeaseRoom(
        parts=parts,
        issuer=Issuer(parts, pools, pump),
        expirer=expirer,
        recovery=Recovery(parts, pump, failover),
        refill=Refill(parts, pools),
        tidier=Tidier(parts),
        sweeper=sweeper,
        reconciler=reconciler,
        failover=failover,
        backlog=BacklogWatch(parts),
        bursts=BurstWatch(parts),
        drainer=Drainer(parts),
    )


@dataclass(frozen=True, slots=True)
class IdentityRoom:
    """What the room `identity` offers the door."""

    gate: Gate
    tokens: Tokens


async def identity_room(ground: Ground, trail: Trail, leases: Parts) -> IdentityRoom:
    settings, scribe = ground.config.tokens, Scribe(ground.hasher)
    cache = TokenCache(size=settings.cache_size, hold_ms=settings.cache_ms)
    callers = Callers(ground.store, scribe, ground.keyring.subkey(Purpose.TOKEN), cache)
    tokens = Tokens(
        TokenParts(
            store=ground.store,
            numbers=ground.numbers,
            ids=ground.ids,
            callers=callers,
            settings=settings,
            on_ended=lambda: leases.wake_expiry(),  # noqa: PLW0108 - it is set later
        )
    )
    if ground.highest == 0:
        keep = ground.seams.keep_root_token or root_token_keeper(ground.config.store.directory / ROOT_TOKEN_FILE)
        await tokens.make_root_token(keep)
    return IdentityRoom(Gate(callers, tokens, trail, scribe, ground.store), tokens)


def recurring(ground: Ground, leases: LeaseRoom, tokens: Tokens) -> Jobs:
    """What is done again and again; each says in how many milliseconds it wants to be asked next."""
    clockwatch = ClockWatch(leases.parts, ground.clock)

    async def end_tokens() -> int:
        return 0 if await tokens.expire(_TOKENS_A_TIME) == _TOKENS_A_TIME else LONGEST_SLEEP_MS

    async def refill_pools() -> int:
        return 0 if await leases.refill.run() else LONGEST_SLEEP_MS

    async def settle() -> int:
        await leases.recovery.settle()
        await clockwatch.look()
        return LONGEST_SLEEP_MS

    async def drain() -> int:
        await leases.drainer.run()
        return LONGEST_SLEEP_MS

    async def watch() -> int:
        await leases.backlog.look()
        await leases.bursts.look()
        return LONGEST_SLEEP_MS

    async def tidy() -> int:
        return 0 if await leases.tidier.tick() else LONGEST_SLEEP_MS

    return Jobs(
        ground.clock,
        [
            Job("expire", leases.expirer.run),
            Job("tokens", end_tokens),
            Job("refill", refill_pools),
            Job("settle", settle),
            Job("drain", drain),
            Job("watch", watch),
            Job("tidy", tidy),
            Job("sweep", leases.sweeper.run),
            Job("reconcile", leases.reconciler.run),
        ],
    )


def services(ground: Ground, catalog: Catalog, leases: LeaseRoom, identity: IdentityRoom) -> Services:
    return Services(
        gate=identity.gate,
        tokens=identity.tokens,
        catalog=catalog,
        issuer=leases.issuer,
        renewer=Renewer(leases.parts, leases.issuer),
        revoker=Revoker(leases.parts, leases.expirer),
        query=Query(leases.parts),
        backlog=leases.backlog,
        outlooks=Outlooks(leases.parts),
        drainer=leases.drainer,
        tidier=leases.tidier,
        reconciler=leases.reconciler,
        trials=Trials(leases.parts, Canary(leases.parts, leases.expirer)),
        metrics=ground.metrics,
        clock=ground.clock,
        facts=Facts(cluster_id=ground.origin.broker),
        settings=ground.config.server,
    )


def new_origin(store: SqliteStore) -> Origin:
    return Origin(broker=store.broker_id, boot=random_bytes(6).hex())


def engine_builder(
    config: Config, seams: Seams, registry: Registry, origin: Origin, metrics: Metrics, clock: Clock
) -> Callable[[Connection], Guard]:
    def build(connection: Connection) -> Guard:
        plugin = registry.plugin(connection.plugin_name)
        known = replace(origin, timeline=connection.timeline, addresses=connection.addresses)
        engine = plugin(connection.name, connection.details, known)
        secrets = [Secret(str(connection.details[name])) for name in plugin.secret_fields if connection.details.get(name)]
        return Guard(seams.engine(engine), connection.name, config.engines, metrics, clock, secrets)

    return build
