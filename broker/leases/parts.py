"""What every verb of this room works with, put together once by the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from broker.audit.entry import Scribe
from broker.audit.trail import Trail
from broker.catalog.catalog import Catalog
from broker.ids import Numbers, PublicIds
from broker.leases.holds import Holds
from broker.leases.settings import LeaseSettings
from broker.leases.users import Markers
from broker.metrics import Metrics
from broker.model import ConnectionNumber
from broker.secret import random_fraction
from broker.store.protocol import Store


def _nothing() -> None:
    """Stands in until the daemon connects the expiry job."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """The room's tools."""

    store: Store
    trail: Trail
    catalog: Catalog
    numbers: Numbers
    ids: PublicIds
    markers: Markers
    scribe: Scribe
    settings: LeaseSettings
    metrics: Metrics
    holds: Holds = field(default_factory=Holds)
    held_up: dict[ConnectionNumber, str] = field(default_factory=dict)
    """Why no lease of a connection can be revoked at the moment, by connections where that is so."""
    wake_expiry: Callable[[], None] = _nothing
    """Tells the expiry that something fell due before it meant to look again."""
    chance: Callable[[], float] = random_fraction
    """By how much of what its role allows the time to live of a lease is shortened."""
    issuing: int = 0
    """Requests for a lease under way; background work gives way to them."""
