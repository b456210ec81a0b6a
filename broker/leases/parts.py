"""What every verb of this room works with, put together once by the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from broker.audit.entry import Scribe
from broker.audit.trail import Trail
from broker.catalog.catalog import Catalog
from broker.ids import Numbers, PublicIds
from broker.leases.settings import LeaseSettings
from broker.leases.users import Markers
from broker.metrics import Metrics
from broker.model import LeaseNumber
from broker.store.protocol import Store


def _nothing() -> None:
    """Stands in until the daemon connects the expiry job."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """The room's tools. `busy` holds leases that a call of this process is giving a login to: revocation leaves those for a moment.

    Without it an enabling statement that was sent before the lease ended could arrive after the login was turned off.
    """

    store: Store
    trail: Trail
    catalog: Catalog
    numbers: Numbers
    ids: PublicIds
    markers: Markers
    scribe: Scribe
    settings: LeaseSettings
    metrics: Metrics
    busy: set[LeaseNumber] = field(default_factory=set)
    renewing: set[LeaseNumber] = field(default_factory=set)
    """Leases whose end a call of this process is moving, in the database first: meanwhile that and the store differ."""
    wake_expiry: Callable[[], None] = _nothing
    """Tells the expiry that something fell due before it meant to look again."""
    issuing: int = 0
    """Requests for a lease under way; background work gives way to them."""
