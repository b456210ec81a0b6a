"""hvac, the client that Python programs use for Vault, drives the broker as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hvac
import hvac.exceptions
import pytest


@pytest.fixture
def vault(broker: Any) -> Callable[[str], hvac.Client]:
    """A client with a token; it blocks, so it is used in a thread."""
    return lambda token: hvac.Client(url=broker.address, token=token)


async def test_roles_credentials_and_leases(broker: Any, database: Any, vault: Any) -> None:
    """The whole way: configure, read, renew, list, revoke."""

    def drive(client: Any) -> None:
        assert client.is_authenticated()
        assert client.sys.is_initialized()
        assert not client.sys.is_sealed()
        engine = client.secrets.database
        engine.configure(
            name="hv", plugin_name="memory-database-plugin", allowed_roles=["hv"], connection_url="memory://", username="u"
        )
        assert engine.read_connection("hv")["data"]["allowed_roles"] == ["hv"]
        engine.create_role(name="hv", db_name="hv", creation_statements=["make"], default_ttl="1h", max_ttl="24h")
        assert engine.list_roles()["data"]["keys"] == ["app", "hv"]
        lease = engine.generate_credentials(name="hv")
        assert lease["data"]["username"] in database.users
        assert client.sys.read_lease(lease["lease_id"])["data"]["ttl"] > 0
        assert client.sys.renew_lease(lease["lease_id"], increment=600)["lease_duration"] == 600
        assert client.sys.list_leases("database/creds/hv")["data"]["keys"] == [lease["lease_id"].rpartition("/")[2]]
        client.sys.revoke_lease(lease["lease_id"])
        assert database.users == set()
        engine.reset_connection("hv")
        engine.delete_role("hv")
        engine.delete_connection("hv")

    await asyncio.to_thread(drive, vault(broker.token))


async def test_tokens(broker: Any, vault: Any) -> None:
    """Make, look up, renew, revoke."""

    def drive(client: Any) -> None:
        tokens = client.auth.token
        auth = tokens.create(policies=["default"], ttl="1h", meta={"a": "b"}, display_name="x")["auth"]
        assert tokens.lookup(auth["client_token"])["data"]["meta"] == {"a": "b"}
        assert tokens.lookup_accessor(auth["accessor"])["data"]["display_name"] == "token-x"
        assert tokens.renew(auth["client_token"], increment="30m")["auth"]["lease_duration"] == 1_800
        assert tokens.renew_accessor(auth["accessor"])["auth"]["client_token"] == ""
        assert auth["accessor"] in tokens.list_accessors()["data"]["keys"]
        child = hvac.Client(url=client.url, token=auth["client_token"])
        assert child.auth.token.lookup_self()["data"]["policies"] == ["default"]
        assert child.auth.token.renew_self()["auth"]["renewable"] is True
        with pytest.raises(hvac.exceptions.Forbidden):
            child.secrets.database.generate_credentials(name="app")
        child.auth.token.revoke_self()
        assert not child.is_authenticated()
        tokens.revoke(tokens.create(policies=["default"])["auth"]["client_token"])
        tokens.revoke_accessor(tokens.create(policies=["default"])["auth"]["accessor"])

    await asyncio.to_thread(drive, vault(broker.token))


async def test_errors_have_their_classes(broker: Any, database: Any, vault: Any) -> None:
    """It raises by status."""

    def drive(client: Any) -> None:
        with pytest.raises(hvac.exceptions.InvalidPath):
            client.secrets.database.read_role("none")
        with pytest.raises(hvac.exceptions.InvalidRequest, match="unknown role: none"):
            client.secrets.database.generate_credentials(name="none")
        with pytest.raises(hvac.exceptions.Forbidden):
            hvac.Client(url=client.url, token="s.wrong").secrets.database.list_roles()
        database.down = True
        with pytest.raises(hvac.exceptions.VaultDown):
            client.secrets.database.generate_credentials(name="app")

    await asyncio.to_thread(drive, vault(broker.token))
