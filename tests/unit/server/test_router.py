"""Which route a request takes."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.server.app import make_router
from broker.server.router import Access, Call, Reply, Router, Table
from broker.server.routes import database, leases, system, tokens

TABLES = [database.TABLE, leases.TABLE, system.TABLE, tokens.TABLE]


@pytest.fixture
def router() -> Router:
    return make_router()


@pytest.mark.parametrize(
    ("operation", "path", "handler", "params"),
    [
        ("update", "database/config/pg", "write_connection", {"name": "pg"}),
        ("read", "database/config/pg", "read_connection", {"name": "pg"}),
        ("delete", "database/config/pg", "delete_connection", {"name": "pg"}),
        ("list", "database/config", "list_connections", {}),
        ("update", "database/reset/pg", "reset_connection", {"name": "pg"}),
        ("update", "database/roles/app", "write_role", {"name": "app"}),
        ("read", "database/roles/app", "read_role", {"name": "app"}),
        ("delete", "database/roles/app", "delete_role", {"name": "app"}),
        ("list", "database/roles", "list_roles", {}),
        ("read", "database/creds/app", "read_credentials", {"name": "app"}),
        ("update", "database/creds/app", "_no_operation", {}),
        ("patch", "database/roles/app", "_no_operation", {}),
        ("list", "database/creds", "_no_path", {}),
        ("read", "database/creds/a/b", "_no_path", {}),
        ("read", "database/creds/", "_no_path", {}),
        ("read", "database", "_no_path", {}),
        ("update", "sys/leases/lookup", "look_up", {}),
        ("list", "sys/leases/lookup", "list_leases", {}),
        ("list", "sys/leases/lookup/database/creds", "list_leases", {"prefix": "database/creds"}),
        ("update", "sys/leases/lookup/x", "_no_operation", {}),
        ("update", "sys/leases/renew", "renew", {}),
        ("update", "sys/leases/renew/database/creds/app/x", "renew", {"lease_id": "database/creds/app/x"}),
        ("update", "sys/renew/a/b", "renew", {"lease_id": "a/b"}),
        ("update", "sys/revoke", "revoke", {}),
        ("update", "sys/leases/revoke/a", "revoke", {"lease_id": "a"}),
        ("update", "sys/leases/revoke-prefix/database/creds", "revoke_prefix", {"prefix": "database/creds"}),
        ("update", "sys/revoke-force/a", "revoke_force", {"prefix": "a"}),
        ("update", "sys/leases/revoke-prefix", "_no_path", {}),
        ("update", "sys/leases/tidy", "tidy", {}),
        ("read", "sys/leases/count", "count_stuck", {}),
        ("read", "sys/leases", "list_stuck", {}),
        ("read", "sys/health", "health", {}),
        ("update", "sys/health", "_no_operation", {}),
        ("read", "sys/mounts/database", "read_mount", {"path": "database"}),
        ("read", "sys/internal/ui/mounts/database/creds/x", "read_mount_seen", {"path": "database/creds/x"}),
        ("update", "auth/token/create", "create", {}),
        ("update", "auth/token/create/role", "_no_path", {}),
        ("read", "auth/token/lookup-self", "look_up_self", {}),
        ("list", "auth/token/accessors", "list_accessors", {}),
        ("read", "", "_no_path", {}),
        ("read", "/", "_no_path", {}),
        ("read", "database//x", "_no_path", {}),
    ],
)
def test_routes(router: Router, operation: str, path: str, handler: str, params: dict[str, str]) -> None:
    """Handler and placeholders for an operation at a path."""
    route, found = router.find(operation, path)
    assert route.handler.__name__ == handler
    assert dict(found) == params


def test_no_route_is_declared_twice() -> None:
    """The later one would silently win."""
    counts = Counter((route.operation, route.pattern) for table in TABLES for route in table.routes)
    assert [key for key, count in counts.items() if count > 1] == []


def test_every_route_but_a_few_needs_a_token() -> None:
    """What is open is listed here, so that nobody opens a route by accident."""
    opened = {(route.access, route.pattern) for table in TABLES for route in table.routes if route.access is not Access.TOKEN}
    assert opened == {
        (Access.OPEN, "sys/health"),
        (Access.OPEN, "sys/seal-status"),
        (Access.OPEN, "sys/leader"),
        (Access.OPEN, "sys/init"),
        (Access.OPTIONAL, "sys/internal/ui/mounts"),
        (Access.OPTIONAL, "sys/internal/ui/mounts/{path*}"),
        (Access.ISSUE, "database/creds/{name}"),
    }


def test_what_is_missing_needs_a_token_too(router: Router) -> None:
    """Nobody learns without a token which paths there are; fixed handlers of Vault are the exception."""
    assert router.find("read", "no/such/path")[0].access is Access.TOKEN
    assert router.find("delete", "database/creds/app")[0].access is Access.TOKEN
    assert router.find("delete", "sys/health")[0].access is Access.OPEN


def test_labels_are_few() -> None:
    """A metric never gets a label from a caller."""
    labels = {route.label for table in TABLES for route in table.routes}
    assert "read database/creds/{name}" in labels
    assert len(labels) == sum(len(table.routes) for table in TABLES)


def test_longer_tails_win() -> None:
    """The pattern with the longest literal head is taken."""
    table = Table()

    async def handler(_call: Call) -> Reply:
        return Reply()

    table.add("read", "a/{x*}")(handler)
    table.add("read", "a/b/{y*}")(handler)
    router = Router([table])
    assert dict(router.find("read", "a/b/c")[1]) == {"y": "c"}
    assert dict(router.find("read", "a/c/d")[1]) == {"x": "c/d"}
