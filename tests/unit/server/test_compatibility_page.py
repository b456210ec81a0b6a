"""The page about compatibility names what the router serves, and the fields that the models have beyond Vault's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from broker.api.database import ConnectionWrite, RoleWrite
from broker.server.app import make_router
from broker_postgresql.settings import ConnectionSettings
from broker_postgresql.terms import RoleOptions

PAGE = Path(__file__).parents[3] / "docs" / "operate" / "compatibility.md"
ROUTES = {re.sub(r"/\{\w+\*\}$", "", route.pattern) for route in make_router().routes}
"""What follows a path with slashes of its own (a lease id, a prefix) may mostly be left out: the page names the path before it."""
VAULTS = {
    *("plugin_name", "plugin_version", "verify_connection", "allowed_roles", "root_rotation_statements", "password_policy"),
    *("connection_url", "username", "password", "max_open_connections", "max_idle_connections", "max_connection_lifetime"),
    *("username_template", "password_authentication", "disable_escaping", "tls_ca", "tls_certificate", "private_key"),
    *("db_name", "creation_statements", "revocation_statements", "rollback_statements", "renew_statements"),
    *("default_ttl", "max_ttl", "credential_type", "credential_config"),
}
"""Fields of connections and roles in Vault 1.18."""


def section(heading: str) -> str:
    """What stands under a heading of the page."""
    [text] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(text)


def paths(text: str) -> set[str]:
    """The paths in it."""
    return set(re.findall(r"`((?:sys|database|auth)/[\w/:*-]+)`", text))


def served(path: str) -> set[str]:
    """The routes that such a path of the page means: `:name` stands for a part, `*` for any text."""
    pattern = re.sub(r":\w+", "[^/]+", path).replace("*", ".*")
    return {route for route in ROUTES if re.fullmatch(pattern, route)}


def test_table_names_every_route_and_no_other() -> None:
    """Each path of the table leads somewhere, and no operation is left out."""
    rows = [line.split("|")[1] for line in section("What is served").splitlines() if line.startswith("| `")]
    named = {path for row in rows for path in paths(row)}
    assert {path for path in named if not served(path)} == set()
    assert ROUTES - {route for path in named for route in served(path)} == set()


def test_what_is_said_to_be_missing_is() -> None:
    """No path among what is not there yet is served."""
    missing = paths(section("What is not there yet"))
    assert missing >= {"sys/auth", "database/rotate-root"}
    assert {path for path in missing if served(path)} == set()


@pytest.mark.parametrize(
    ("what", "models"), [("a connection", (ConnectionWrite, ConnectionSettings)), ("a role", (RoleWrite, RoleOptions))]
)
def test_fields_of_our_own_are_named(what: str, models: tuple[type[BaseModel], ...]) -> None:
    """All that a connection and a role take and Vault's do not, and nothing else."""
    [named] = re.findall(rf"^- of {what}: (.*?);$", section("What differs"), re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) == {field for model in models for field in model.model_fields} - VAULTS
