"""A look at a stopped broker's store and databases."""

from __future__ import annotations

from dataclasses import dataclass

from broker.catalog.catalog import Catalog
from broker.catalog.connections import Connection
from broker.catalog.engines import OpenEngines
from broker.clock import SystemClock
from broker.config import Config
from broker.daemon.rooms import (
    engine_builder,
    new_origin,
)
from broker.daemon.seams import Seams
from broker.engines.protocol import Health
from broker.engines.registry import Registry
from broker.errors import BrokerError, StoreUnavailable
from broker.leases import lifecycle
from broker.metrics import Metrics
from broker.model import LeaseState
from broker.seal.settings import provider
from broker.store.sqlite.peek import exists
from broker.store.sqlite.store import SqliteStore


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
    build = engine_builder(config, Seams(), registry, new_origin(store), Metrics(), clock)
    catalog = Catalog(store, registry, OpenEngines(build))
    try:
        await catalog.refresh()
        tally = await store.tally()
        health = {connection.name: await _health(catalog, connection) for connection in catalog.connections()}
        live = sum(count for state, count in tally.by_state.items() if lifecycle.live(state))
        return Examined(live, tally[LeaseState.STUCK], health)
    finally:
        await catalog.close()
        await store.close()


async def _health(catalog: Catalog, connection: Connection) -> Health | BrokerError:
    try:
        return await (await catalog.engine_for(connection)).health()
    except BrokerError as error:
        return error
