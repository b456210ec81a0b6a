"""Everything that the handlers call, put together once by the daemon."""

from __future__ import annotations

from dataclasses import dataclass

from broker import __version__
from broker.catalog.catalog import Catalog
from broker.clock import Clock
from broker.identity.gate import Gate
from broker.identity.tokens import Tokens
from broker.leases.backlog import BacklogWatch
from broker.leases.drain import Drainer
from broker.leases.issue import Issuer
from broker.leases.outlook import Outlooks
from broker.leases.query import Query
from broker.leases.reconcile import Reconciler
from broker.leases.renew import Renewer
from broker.leases.revoke import Revoker
from broker.leases.tidy import Tidier
from broker.leases.trial import Trials
from broker.metrics import Metrics
from broker.server.settings import ServerSettings

API_VERSION = f"1.18.0+broker.{__version__}"
"""Clients of Vault parse this as a version and switch features on by it; what this broker is stands behind the plus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What health and seal status say of this broker."""

    cluster_id: str
    cluster_name: str = "broker"
    version: str = API_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The rooms behind the door."""

    gate: Gate
    tokens: Tokens
    catalog: Catalog
    issuer: Issuer
    renewer: Renewer
    revoker: Revoker
    query: Query
    backlog: BacklogWatch
    outlooks: Outlooks
    drainer: Drainer
    tidier: Tidier
    reconciler: Reconciler
    trials: Trials
    metrics: Metrics
    clock: Clock
    facts: Facts
    settings: ServerSettings
