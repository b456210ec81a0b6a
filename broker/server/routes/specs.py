"""Operation at `sys/internal/specs`: the OpenAPI document of all operations, its own included."""

from __future__ import annotations

from functools import lru_cache

import orjson

from broker.api.system import Specification
from broker.engines.registry import Registry
from broker.server.openapi import document
from broker.server.router import Access, Call, Reply, Table
from broker.server.routes import database, leases, metrics, reconcile, system, tokens

TABLE = Table()
TABLES = (database.TABLE, leases.TABLE, metrics.TABLE, reconcile.TABLE, system.TABLE, tokens.TABLE, TABLE)
"""Every operation that the door offers."""
_KEPT = 2
"""With a token and without."""
_WITHOUT_TOKEN = frozenset({Access.OPEN, Access.OPTIONAL})


@TABLE.add("read", "sys/internal/specs/openapi", access=Access.OPTIONAL, gives=Specification)
async def specification(call: Call) -> Reply:
    """This document; without a token, of the operations that need none."""
    accesses = _WITHOUT_TOKEN if call.passage is None else frozenset(Access)
    return Reply(document=_document(accesses, call.services.catalog.registry))


@lru_cache(_KEPT)
def _document(accesses: frozenset[Access], registry: Registry) -> bytes:
    routes = [route for table in TABLES for route in table.routes if route.access in accesses]
    return orjson.dumps(document(routes, registry.fields()))
