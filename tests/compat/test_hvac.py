"""The PyPI client hvac against a running broker: what it sends is understood, and what it hears it understands."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator

import asyncpg
import hvac
import pytest
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, VaultError

from broker.secret import Secret
from broker.testing.broker import CREATE_USER, BrokerProcess, connection_to
from broker.testing.postgresql import PostgresServer


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker on a TCP port, shared by this module."""
    with BrokerProcess(tmp_path_factory.mktemp("hvac"), '[server]\naddress = "127.0.0.1:0"\n') as started:
        yield started


def client_with(broker: BrokerProcess, token: str) -> hvac.Client:
    return hvac.Client(url=broker.address, token=token)


@pytest.fixture(scope="module")
def root(broker: BrokerProcess) -> Iterator[hvac.Client]:
    """A client with the root token."""
    client = client_with(broker, broker.root_token.reveal())
    yield client
    client.adapter.close()


@pytest.fixture(scope="module")
def role(root: hvac.Client, postgresql_18: PostgresServer) -> str:
    """A role whose leases are read below, made by hvac."""
    fields = connection_to(postgresql_18)
    root.secrets.database.configure(
        name="main",
        plugin_name=fields.pop("plugin_name"),
        allowed_roles=["app", "batch-*"],
        verify_connection=True,
        connection_url=fields["connection_url"],
        username=fields["username"],
        password=fields["password"],
    )
    root.secrets.database.create_role(
        name="app", db_name="main", creation_statements=[CREATE_USER], default_ttl="10m", max_ttl="1h"
    )
    return "app"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def can_log_in(server: PostgresServer, login: dict[str, str]) -> bool:
    async def attempt() -> bool:
        dsn = server.dsn(login["username"], Secret(login["password"])).reveal()
        try:
            connection = await asyncpg.connect(dsn)
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
            return False
        name = await connection.fetchval("SELECT current_user")
        await connection.close()
        return bool(name == login["username"])

    return asyncio.run(attempt())


# the database engine --------------------------------------------------------------------------------------------------


def test_connection_is_read_back_without_its_password(root: hvac.Client, role: str, postgresql_18: PostgresServer) -> None:
    """configure, read_connection, list_connections and reset_connection agree on the connection."""
    shown = root.secrets.database.read_connection("main")["data"]
    assert shown["plugin_name"] == "postgresql-database-plugin"
    assert shown["allowed_roles"] == ["app", "batch-*"]
    assert shown["connection_details"]["username"] == postgresql_18.superuser
    assert "password" not in shown["connection_details"]
    assert postgresql_18.superuser_password.reveal() not in str(shown)
    assert root.secrets.database.list_connections()["data"]["keys"] == ["main"]
    assert root.secrets.database.reset_connection("main").status_code == 204


def test_role_is_read_back_as_written(root: hvac.Client, role: str) -> None:
    """create_role, read_role, list_roles and delete_role: texts of durations come back as seconds."""
    root.secrets.database.create_role("batch-1", "main", CREATE_USER, default_ttl="1h30m", max_ttl=7200)
    shown = root.secrets.database.read_role("batch-1")["data"]
    assert (shown["db_name"], shown["default_ttl"], shown["max_ttl"]) == ("main", 5400, 7200)
    assert shown["creation_statements"] == [CREATE_USER]
    assert shown["revocation_statements"] == []
    assert root.secrets.database.list_roles()["data"]["keys"] == ["app", "batch-1"]
    assert root.secrets.database.delete_role("batch-1").status_code == 204
    with pytest.raises(InvalidPath):
        root.secrets.database.read_role("batch-1")


def test_generated_credentials_log_in(root: hvac.Client, role: str, postgresql_18: PostgresServer) -> None:
    """generate_credentials answers in the envelope, and the login works until the lease is revoked."""
    issued = root.secrets.database.generate_credentials(role)
    assert issued["lease_id"].startswith("database/creds/app/")
    assert issued["renewable"] is True
    assert issued["lease_duration"] == 600
    assert can_log_in(postgresql_18, issued["data"])
    assert root.sys.revoke_lease(issued["lease_id"]).status_code == 204
    assert not can_log_in(postgresql_18, issued["data"])


def test_encoded_statements_are_run_decoded(root: hvac.Client, role: str, postgresql_18: PostgresServer) -> None:
    """A JSON list, base64 and base64 of a list make, extend and remove a user; the role is read back as it was written."""
    statements = {
        "creation_statements": encoded(json.dumps([CREATE_USER, 'ALTER ROLE "{{name}}" SET statement_timeout = 5000'])),
        "renew_statements": encoded("ALTER ROLE \"{{name}}\" VALID UNTIL '{{expiration}}'"),
        "revocation_statements": json.dumps(['DROP OWNED BY "{{name}}"', 'DROP ROLE "{{name}}"']),
    }
    assert not root.write_data("database/roles/batch-encoded", data={"db_name": "main", **statements}).content
    shown = root.secrets.database.read_role("batch-encoded")["data"]
    assert {field: shown[field] for field in statements} == {field: [text] for field, text in statements.items()}
    issued = root.secrets.database.generate_credentials("batch-encoded")
    assert can_log_in(postgresql_18, issued["data"])
    assert root.sys.renew_lease(issued["lease_id"], increment=1800)["lease_duration"] == 1800
    assert root.sys.revoke_lease(issued["lease_id"]).status_code == 204
    assert not can_log_in(postgresql_18, issued["data"])


def test_deleted_connection_still_revokes(root: hvac.Client, role: str, postgresql_18: PostgresServer) -> None:
    """delete_connection strands no lease."""
    fields = connection_to(postgresql_18)
    root.secrets.database.configure("short", fields.pop("plugin_name"), **fields)
    root.secrets.database.create_role("short", "short", CREATE_USER)
    issued = root.secrets.database.generate_credentials("short")
    root.secrets.database.delete_role("short")
    root.secrets.database.delete_connection("short")
    root.sys.revoke_lease(issued["lease_id"])
    assert not can_log_in(postgresql_18, issued["data"])


# leases ---------------------------------------------------------------------------------------------------------------


def test_lease_is_read_renewed_and_listed(root: hvac.Client, role: str) -> None:
    """read_lease, renew_lease and list_leases agree on the lease."""
    issued = root.secrets.database.generate_credentials(role)
    lease_id = issued["lease_id"]
    shown = root.sys.read_lease(lease_id)["data"]
    assert shown["id"] == lease_id
    assert shown["renewable"] is True
    assert 590 <= shown["ttl"] <= 600
    renewed = root.sys.renew_lease(lease_id, increment=1800)
    assert renewed["lease_id"] == lease_id
    assert renewed["lease_duration"] == 1800
    assert root.sys.read_lease(lease_id)["data"]["last_renewal"] is not None
    assert lease_id.rpartition("/")[2] in root.sys.list_leases("database/creds/app")["data"]["keys"]
    assert root.sys.list_leases("database")["data"]["keys"] == ["creds/"]
    root.sys.revoke_lease(lease_id)
    with pytest.raises(InvalidRequest, match="invalid lease"):
        root.sys.read_lease(lease_id)
    with pytest.raises(InvalidRequest, match="lease not found"):
        root.sys.renew_lease(lease_id)


def test_renewal_past_the_maximum_is_capped(root: hvac.Client, role: str) -> None:
    """A renewal over max_ttl succeeds, is shorter than asked for and says so."""
    lease_id = root.secrets.database.generate_credentials(role)["lease_id"]
    renewed = root.sys.renew_lease(lease_id, increment=7200)
    assert 3500 <= renewed["lease_duration"] <= 3600
    assert renewed["warnings"]
    assert root.sys.read_lease(lease_id)["data"]["capped_by"] == "max_ttl"


def test_prefix_is_revoked(root: hvac.Client, role: str, postgresql_18: PostgresServer) -> None:
    """revoke_prefix ends all leases under a path; revoke_force succeeds where there is none."""
    issued = [root.secrets.database.generate_credentials(role) for _ in range(3)]
    # It sends the prefix in the path and in the body; where that were answered with a warning, it would hand out that.
    assert root.sys.revoke_prefix("database/creds/app").status_code == 204
    assert [can_log_in(postgresql_18, each["data"]) for each in issued] == [False] * 3
    with pytest.raises(InvalidPath):
        root.sys.list_leases("database/creds/app")
    assert root.sys.revoke_force("database/creds/app").status_code == 204


# tokens ---------------------------------------------------------------------------------------------------------------


def test_token_is_created_looked_up_and_renewed(broker: BrokerProcess, root: hvac.Client) -> None:
    """create, lookup, lookup_self, lookup_accessor, renew, renew_self and renew_accessor agree on the token."""
    made = root.auth.token.create(policies=["default"], ttl="1h", meta={"team": "a"}, display_name="job")["auth"]
    assert made["policies"] == ["default"]
    assert made["lease_duration"] == 3600
    token, accessor = made["client_token"], made["accessor"]
    shown = root.auth.token.lookup(token)["data"]
    assert (shown["accessor"], shown["display_name"], shown["meta"]) == (accessor, "token-job", {"team": "a"})
    assert root.auth.token.lookup_accessor(accessor)["data"]["id"] == ""
    assert accessor in root.auth.token.list_accessors()["data"]["keys"]
    own = client_with(broker, token)
    assert own.is_authenticated()
    assert own.auth.token.lookup_self()["data"]["id"] == token
    assert own.auth.token.renew_self(increment="30m")["auth"]["lease_duration"] == 1800
    assert root.auth.token.renew(token, increment="20m")["auth"]["lease_duration"] == 1200
    assert root.auth.token.renew_accessor(accessor)["auth"]["client_token"] == ""
    own.adapter.close()


def test_token_ends_in_every_way(broker: BrokerProcess, root: hvac.Client) -> None:
    """revoke, revoke_accessor and revoke_self each end the token."""
    by_text, by_accessor, by_self = (root.auth.token.create(ttl="1h")["auth"] for _ in range(3))
    root.auth.token.revoke(by_text["client_token"])
    root.auth.token.revoke_accessor(by_accessor["accessor"])
    own = client_with(broker, by_self["client_token"])
    own.auth.token.revoke_self()
    own.adapter.close()
    for ended in (by_text, by_accessor, by_self):
        client = client_with(broker, ended["client_token"])
        assert not client.is_authenticated()
        with pytest.raises(Forbidden):
            client.auth.token.lookup_self()
        client.adapter.close()


def test_children_and_leases_die_with_a_token(
    broker: BrokerProcess, root: hvac.Client, role: str, postgresql_18: PostgresServer
) -> None:
    """Revoking a token ends its child and the child's lease; an orphan lives on; orphaned children keep theirs."""
    parent = root.auth.token.create(policies=["root"], ttl="1h")["auth"]["client_token"]
    as_parent = client_with(broker, parent)
    child = as_parent.auth.token.create(ttl="30m")["auth"]["client_token"]
    orphan = as_parent.auth.token.create_orphan(ttl="30m")["auth"]["client_token"]
    as_child = client_with(broker, child)
    issued = as_child.secrets.database.generate_credentials(role)
    assert can_log_in(postgresql_18, issued["data"])
    root.auth.token.revoke(parent)
    as_orphan = client_with(broker, orphan)
    assert not as_child.is_authenticated()
    assert as_orphan.is_authenticated()
    grandchild = as_orphan.auth.token.create(ttl="10m")["auth"]["client_token"]
    root.auth.token.revoke_and_orphan_children(orphan)
    as_grandchild = client_with(broker, grandchild)
    assert not as_orphan.is_authenticated()
    assert as_grandchild.is_authenticated()
    # The lease of an ended token ends in the background; asked for, it is waited for.
    root.sys.revoke_lease(issued["lease_id"])
    assert not can_log_in(postgresql_18, issued["data"])
    for client in (as_parent, as_child, as_orphan, as_grandchild):
        client.adapter.close()


# the system -----------------------------------------------------------------------------------------------------------


def test_health_and_seal_are_as_hvac_reads_them(root: hvac.Client) -> None:
    """The client finds an initialised, unsealed, active server."""
    assert root.sys.is_initialized()
    assert not root.sys.is_sealed()
    assert root.seal_status["initialized"] is True
    assert root.sys.read_health_status(method="HEAD").status_code == 200
    assert root.sys.read_health_status(method="GET")["sealed"] is False
    assert root.sys.read_leader_status()["ha_enabled"] is False
    assert root.is_authenticated()


def test_mounts_are_listed(root: hvac.Client) -> None:
    """list_mounted_secrets_engines shows the database engine, in the envelope's data and beside it."""
    mounts = root.sys.list_mounted_secrets_engines()
    assert mounts["data"]["database/"]["type"] == mounts["database/"]["type"] == "database"


# errors ---------------------------------------------------------------------------------------------------------------


def test_errors_have_their_classes(broker: BrokerProcess, root: hvac.Client, role: str) -> None:
    """What is asked for wrongly, without the right, or in vain is told apart by hvac."""
    with pytest.raises(InvalidRequest, match="unknown role: nobody"):
        root.secrets.database.generate_credentials("nobody")
    root.secrets.database.create_role("stray", "main", CREATE_USER)
    with pytest.raises(InvalidRequest, match="is not an allowed role"):
        root.secrets.database.generate_credentials("stray")
    with pytest.raises(InvalidRequest, match="database name is required"):
        root.secrets.database.create_role("nameless", "", CREATE_USER)
    with pytest.raises(InvalidRequest, match="error verifying connection"):
        root.secrets.database.configure("away", "postgresql-database-plugin", connection_url="postgresql://u@127.0.0.1:1/d")
    with pytest.raises(InvalidPath):
        root.secrets.database.read_connection("nobody")
    with pytest.raises(InvalidPath, match="no handler for route"):
        root.adapter.get("/v1/nowhere/at/all")
    with pytest.raises(VaultError, match="unsupported operation"):
        root.write_data("database/creds/app")
    stranger = client_with(broker, "hvs.stranger")
    with pytest.raises(Forbidden):
        stranger.secrets.database.generate_credentials(role)
    stranger.adapter.close()
    limited = client_with(broker, root.auth.token.create(policies=["default"], ttl="1h")["auth"]["client_token"])
    with pytest.raises(Forbidden):
        limited.secrets.database.list_roles()
    limited.adapter.close()
