"""The composition root: builds everything from the configuration; owns start, stop and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from broker.audit.devices.file import FileDevice
from broker.audit.devices.protocol import AuditDevice
from broker.audit.devices.stdout import StdoutDevice
from broker.audit.entry import Hasher, Scribe
from broker.audit.trail import Trail
from broker.catalog.catalog import Catalog
from broker.catalog.connections import Connection
from broker.catalog.engines import OpenEngines
from broker.clock import Clock, SystemClock
from broker.config import Config
from broker.engines.guard import Guard
from broker.engines.protocol import Engine, Health, Origin
from broker.engines.registry import Registry
from broker.errors import BrokerError, StoreUnavailable
from broker.identity.cache import TokenCache
from broker.identity.callers import Callers
from broker.identity.gate import Gate
from broker.identity.tokens import Parts as TokenParts
from broker.identity.tokens import Tokens
from broker.ids import Numbers, PublicIds
from broker.jobs import LONGEST_SLEEP_MS, Job, Jobs
from broker.leases import records
from broker.leases.clockwatch import ClockWatch
from broker.leases.expire import Expirer
from broker.leases.issue import Issuer
from broker.leases.parts import Parts
from broker.leases.prepare import Pools, Refill
from broker.leases.pump import Pump
from broker.leases.query import Query
from broker.leases.recover import Recovery
from broker.leases.renew import Renewer
from broker.leases.revoke import Revoker
from broker.leases.tidy import Tidier
from broker.leases.users import Markers
from broker.leases.witness import Witness
from broker.metrics import Metrics
from broker.model import LeaseNumber, LeaseState
from broker.seal.keyring import Purpose
from broker.seal.providers import KeyProvider, create_key_file
from broker.seal.settings import key_path, provider
from broker.secret import Secret, random_bytes
from broker.server.app import make_door
from broker.server.listen import Listener
from broker.server.services import Facts, Services
from broker.store.protocol import AuditHead, Store
from broker.store.sqlite.files import sync_directory
from broker.store.sqlite.peek import exists
from broker.store.sqlite.store import SqliteStore

log = structlog.get_logger(__name__)

ROOT_TOKEN_FILE = "root-token"
_TOKENS_A_TIME = 256


def _same_store(store: Store) -> Store:
    return store


def _same_engine(engine: Engine) -> Engine:
    return engine


def _same_device(device: AuditDevice) -> AuditDevice:
    return device


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What may be put between the rooms from outside; a test plants faults here. The defaults change nothing."""

    clock: Callable[[], Clock] = SystemClock
    store: Callable[[Store], Store] = _same_store
    engine: Callable[[Engine], Engine] = _same_engine
    device: Callable[[AuditDevice], AuditDevice] = _same_device
    key: KeyProvider | None = None
    """Instead of the configured one."""
    keep_root_token: Callable[[Secret], None] | None = None
    """Instead of writing it to a file."""


@dataclass(slots=True)
class Daemon:
    """A running broker. Made by `start`; `stop` ends it."""

    config: Config
    store: Store
    trail: Trail
    catalog: Catalog
    jobs: Jobs
    expirer: Expirer
    listener: Listener
    metrics: Metrics
    registry: Registry
    _background: set[asyncio.Task[object]] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Where it listens: `http://127.0.0.1:8200`, or `unix:/path`."""
        return self.listener.address

    async def stop(self) -> None:
        """Stops accepting, finishes what is in flight within the configured limit, then closes everything in order."""
        await self.listener.close()
        await self.jobs.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.expirer.stop()
        await self.catalog.close()
        await self.trail.close()
        await self.store.close()
        log.info("stopped")


async def start(config: Config, seams: Seams | None = None) -> Daemon:
    """A broker that answers. Recovery goes on in the background.

    Raises `ConfigError`, `KeyUnusable`, `StoreDamaged`, `StoreInUse`, `SealBroken`, `AuditUnavailable`, `AuditBroken`.
    What was opened is closed again when it can't start.
    """
    async with contextlib.AsyncExitStack() as opened:
        daemon = await _assemble(config, seams or Seams(), opened)
        opened.pop_all()
        return daemon


async def _assemble(config: Config, seams: Seams, opened: contextlib.AsyncExitStack) -> Daemon:
    clock = seams.clock()
    directory = config.store.directory
    sqlite = await SqliteStore.open(directory, _master_key(config, seams), clock)
    opened.push_async_callback(sqlite.close)
    store, keyring = seams.store(sqlite), sqlite.keyring
    highest = await store.highest_number()
    metrics = Metrics()
    trail = await _open_trail(config, seams, store, keyring.subkey(Purpose.AUDIT), clock)
    opened.push_async_callback(trail.close)
    scribe = Scribe(Hasher(keyring.subkey(Purpose.AUDIT)))
    numbers, ids = Numbers(clock, above=highest), PublicIds(keyring.subkey(Purpose.LEASE_ID))
    registry = Registry.installed(config.engines.allowed_distributions)
    origin = Origin(broker=sqlite.broker_id, boot=_new_boot())

    catalog = Catalog(store, registry, OpenEngines(_engine_builder(config, seams, registry, origin, metrics, clock)))
    opened.push_async_callback(catalog.close)
    await catalog.refresh()

    parts = Parts(
        store=store,
        trail=trail,
        catalog=catalog,
        numbers=numbers,
        ids=ids,
        markers=Markers(sqlite.broker_id, keyring.subkey(Purpose.MARKER)),
        scribe=Scribe(Hasher(keyring.subkey(Purpose.AUDIT)), clear_keys=records.CLEAR_KEYS),
        settings=config.leases,
        metrics=metrics,
    )
    pools, pump = Pools(parts), Pump(parts)
    issuer = Issuer(parts, pools, pump)
    expirer = Expirer(parts, Witness(parts, {}))
    opened.push_async_callback(expirer.stop)
    recovery, refill, tidier = Recovery(parts, pump), Refill(parts, pools), Tidier(parts)
    cache = TokenCache(size=config.tokens.cache_size, hold_ms=config.tokens.cache_ms)
    callers = Callers(store, scribe, keyring.subkey(Purpose.TOKEN), cache)
    tokens = Tokens(
        TokenParts(
            store=store,
            numbers=numbers,
            ids=ids,
            callers=callers,
            settings=config.tokens,
            on_ended=lambda: parts.wake_expiry(),  # noqa: PLW0108 - it is set later
        )
    )
    if highest == 0:
        await tokens.make_root_token(seams.keep_root_token or _root_token_keeper(directory / ROOT_TOKEN_FILE))

    clockwatch = ClockWatch(parts, clock)

    async def end_tokens() -> int:
        return 0 if await tokens.expire(_TOKENS_A_TIME) == _TOKENS_A_TIME else LONGEST_SLEEP_MS

    async def refill_pools() -> int:
        return 0 if await refill.run() else LONGEST_SLEEP_MS

    async def settle() -> int:
        await recovery.settle()
        await clockwatch.look()
        return LONGEST_SLEEP_MS

    async def tidy() -> int:
        return 0 if await tidier.tick() else LONGEST_SLEEP_MS

    jobs = Jobs(
        clock,
        [
            Job("expire", expirer.run),
            Job("tokens", end_tokens),
            Job("refill", refill_pools),
            Job("settle", settle),
            Job("tidy", tidy),
        ],
    )
    parts.wake_expiry = lambda: jobs.wake("expire")
    services = Services(
        gate=Gate(callers, tokens, trail, scribe, store),
        tokens=tokens,
        catalog=catalog,
        issuer=issuer,
        renewer=Renewer(parts, issuer),
        revoker=Revoker(parts, expirer),
        query=Query(parts),
        tidier=tidier,
        metrics=metrics,
        clock=clock,
        facts=Facts(cluster_id=sqlite.broker_id),
        settings=config.server,
    )
    await refill.forget_unknown_roles()
    listener = await Listener.open(make_door(services), config.server)
    jobs.start()
    daemon = Daemon(config, store, trail, catalog, jobs, expirer, listener, metrics, registry)
    recovering = asyncio.get_running_loop().create_task(recovery.at_start(LeaseNumber(highest)))
    daemon._background.add(recovering)  # noqa: SLF001 - made here
    recovering.add_done_callback(daemon._background.discard)  # noqa: SLF001
    log.info("ready", address=listener.address, store=str(directory), broker=sqlite.broker_id, boot=origin.boot)
    return daemon


def _new_boot() -> str:
    return random_bytes(6).hex()


def _engine_builder(
    config: Config, seams: Seams, registry: Registry, origin: Origin, metrics: Metrics, clock: Clock
) -> Callable[[Connection], Guard]:
    def build(connection: Connection) -> Guard:
        plugin = registry.plugin(connection.plugin_name)
        engine = plugin(connection.name, connection.details, origin)
        secrets = [Secret(str(connection.details[name])) for name in plugin.secret_fields if connection.details.get(name)]
        return Guard(seams.engine(engine), connection.name, config.engines, metrics, clock, secrets)

    return build


def _master_key(config: Config, seams: Seams) -> bytes:
    directory = config.store.directory
    if seams.key is not None:
        return seams.key.master_key()
    path = key_path(config.seal, directory)
    if config.seal.provider == "file" and not path.exists() and not exists(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key_file(path)
        log.info("made a new master key; keep a copy elsewhere, without it the store can't be opened", path=str(path))
    return provider(config.seal, directory).master_key()


async def _open_trail(config: Config, seams: Seams, store: Store, key: bytes, clock: Clock) -> Trail:
    path = config.audit.path or config.store.directory / "audit.log"
    device: AuditDevice = StdoutDevice() if config.audit.device == "stdout" else FileDevice(path)
    trail = await Trail.open(
        seams.device(device),
        key,
        await store.audit_head(),
        lambda sequence, mac: store.confirm_audit(AuditHead(sequence, mac)),
        clock=clock,
        waiting_max=config.audit.waiting_max,
    )
    if trail.resumption.alert:
        log.error("the audit log is not as it was left", finding=str(trail.resumption.finding), device=str(device))
    return trail


def _root_token_keeper(path: Path) -> Callable[[Secret], None]:
    """Writes the root token once, to a 0600 file made exclusively; file and directory entry are on disc before its hash is in the store."""

    def keep(token: Secret) -> None:
        # The store has no token yet, so a file left by a start that was cut off names one that was never valid.
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token.reveal() + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
        log.warning("wrote the root token; move it to a safe place", path=str(path))

    return keep


@dataclass(frozen=True, slots=True)
class Examined:
    """What a stopped broker's store and databases look like."""

    live: int
    stuck: int
    connections: dict[str, Health | BrokerError]


async def examine(config: Config) -> Examined:
    """Opens a stopped broker's store, asks every connection how it is, and lets go of both.

    Raises what `start` does. A missing store or key is not made.
    """
    clock = SystemClock()
    directory = config.store.directory
    if not exists(directory):
        raise StoreUnavailable(f"there is no store in {directory} yet: the first start makes it")
    store = await SqliteStore.open(directory, provider(config.seal, directory).master_key(), clock)
    registry = Registry.installed(config.engines.allowed_distributions)
    origin = Origin(broker=store.broker_id, boot=_new_boot())
    catalog = Catalog(store, registry, OpenEngines(_engine_builder(config, Seams(), registry, origin, Metrics(), clock)))
    try:
        await catalog.refresh()
        tally = await store.tally()
        health = {connection.name: await _health(catalog, connection) for connection in catalog.connections()}
        live = sum(tally[state] for state in (LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.REVOKING, LeaseState.STUCK))
        return Examined(live, tally[LeaseState.STUCK], health)
    finally:
        await catalog.close()
        await store.close()


async def _health(catalog: Catalog, connection: Connection) -> Health | BrokerError:
    try:
        return await (await catalog.engine_for(connection)).health()
    except BrokerError as error:
        return error


async def serve(config: Config, seams: Seams | None = None, *, started: Callable[[Daemon], None] = lambda _: None) -> None:
    """Runs a broker until SIGTERM or SIGINT. SIGHUP reopens the audit log. Tells systemd when it is ready and when it stops."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    daemon = await start(config, seams)
    loop.add_signal_handler(signal.SIGHUP, daemon.trail.reopen)
    try:
        started(daemon)
        _notify("READY=1")
        await ended.wait()
    finally:
        _notify("STOPPING=1")
        await daemon.stop()


def _notify(state: str) -> None:
    """One datagram to systemd, where it asked for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify, contextlib.suppress(OSError):
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.sendall(state.encode())
