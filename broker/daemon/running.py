"""A running broker: start, stop and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import structlog

from broker.audit.trail import Trail
from broker.catalog.catalog import Catalog
from broker.config import Config
from broker.daemon import collector, older
from broker.daemon.rooms import (
    identity_room,
    lease_room,
    open_catalog,
    open_ground,
    open_trail,
    recurring,
    services,
)
from broker.daemon.seams import Seams
from broker.engines.registry import Registry
from broker.jobs import Jobs
from broker.leases.expire import Expirer
from broker.leases.failover import Failover
from broker.leases.reconcile import Reconciler
from broker.leases.sweep import Sweeper
from broker.metrics import Metrics
from broker.model import LeaseNumber
from broker.server.app import make_door
from broker.server.listen import Listener
from broker.store.protocol import Store

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Daemon:
    """A running broker. Made by `start`; `stop` ends it."""

    config: Config
    store: Store
    trail: Trail
    catalog: Catalog
    jobs: Jobs
    expirer: Expirer
    sweeper: Sweeper
    reconciler: Reconciler
    failover: Failover
    listener: Listener
    metrics: Metrics
    registry: Registry
    _background: set[asyncio.Task[object]] = field(default_factory=set)

    def in_background(self, work: Coroutine[object, object, object]) -> None:
        """Runs `work` beside everything else; `stop` cancels what is left of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

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
        await asyncio.gather(self.expirer.stop(), self.sweeper.stop(), self.reconciler.stop(), self.failover.stop())
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
    ground = await open_ground(config, seams, opened)
    trail = await open_trail(ground, opened)
    await older.tell(ground.store, ground.ids, trail.resumption.handed_out)
    registry = Registry.installed(config.engines.allowed_distributions)
    catalog = await open_catalog(ground, registry, opened)
    leases = lease_room(ground, trail, catalog, opened)
    identity = await identity_room(ground, trail, leases.parts)
    jobs = recurring(ground, leases, identity.tokens)
    leases.parts.wake_expiry = lambda: jobs.wake("expire")
    await leases.refill.forget_unknown_roles()
    await leases.drainer.take_over()
    door = make_door(services(ground, catalog, leases, identity))
    listener = await Listener.open(door, config.server)
    jobs.start()
    daemon = Daemon(
        config=config,
        store=ground.store,
        trail=trail,
        catalog=catalog,
        jobs=jobs,
        expirer=leases.expirer,
        sweeper=leases.sweeper,
        reconciler=leases.reconciler,
        failover=leases.failover,
        listener=listener,
        metrics=ground.metrics,
        registry=registry,
    )
    daemon.in_background(leases.recovery.at_start(LeaseNumber(ground.highest)))
    log.info(
        "ready",
        address=listener.address,
        store=str(config.store.directory),
        broker=ground.origin.broker,
        boot=ground.origin.boot,
    )
    return daemon


async def serve(config: Config, seams: Seams | None = None, *, started: Callable[[Daemon], None] = lambda _: None) -> None:
    """Runs a broker until SIGTERM or SIGINT. SIGHUP reopens the audit log. Tells systemd when it is ready and when it stops."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    rotated = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, rotated.set)
    daemon = await start(config, seams)
    loop.add_signal_handler(signal.SIGHUP, daemon.trail.reopen)
    if rotated.is_set():
        daemon.trail.reopen()
    collector.relax()
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
