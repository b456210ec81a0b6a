"""The door, made from what stands behind it."""

from __future__ import annotations

from broker.server.pipeline import Pipeline
from broker.server.router import Router
from broker.server.routes import specs
from broker.server.services import Services
from broker.server.wire import Door


def make_router() -> Router:
    """Every operation that the door offers."""
    return Router(specs.TABLES)


def make_door(services: Services) -> Door:
    """An aiohttp server that answers for `services`; `Listener.open` lets it listen. Needs a running event loop."""
    return Door(Pipeline(services, make_router()), services.settings)
