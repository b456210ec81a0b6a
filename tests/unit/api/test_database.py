"""Connections and roles as they are written."""

from __future__ import annotations

import pytest

from broker.api.database import ConnectionWrite, RoleWrite
from broker.api.fields import decode
from broker.errors import InvalidRequest


def test_engine_fields_of_a_connection_are_kept_as_sent() -> None:
    """What only the engine understands keeps its JSON type in `model_extra`."""
    fields = decode(
        ConnectionWrite, {"plugin_name": "x", "connection_url": "u", "max_open_connections": 4, "allowed_roles": "a,b"}
    )
    assert fields.model_extra == {"connection_url": "u", "max_open_connections": 4}
    assert fields.allowed_roles == ["a", "b"]


def test_an_update_tells_what_was_sent() -> None:
    """Only what was sent is in `model_fields_set`, so that an update can merge."""
    fields = decode(RoleWrite, {"max_ttl": "24h", "grant_roles": ["reader"]})
    assert fields.model_fields_set == {"max_ttl", "grant_roles"}
    assert fields.model_extra == {"grant_roles": ["reader"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prepared_users", 10_001),
        ("prepared_users", -1),
        ("max_leases", -1),
        ("ttl_jitter", -1),
        ("ttl_jitter", 51),
        ("session_grace", "-1s"),
        ("session_grace", "3601s"),
        ("credential_type", "rsa_private_key"),
        ("lease_owner", "entity"),
        ("default_ttl", "forever"),
        ("creation_statements", [{"a": 1}]),
    ],
)
def test_a_role_out_of_bounds_is_refused(field: str, value: object) -> None:
    """The mistake is named by its field."""
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        decode(RoleWrite, {field: value})


def test_credential_type_may_be_left_empty() -> None:
    """Terraform sends an empty one for the default."""
    assert decode(RoleWrite, {"credential_type": ""}).credential_type == "password"


@pytest.mark.parametrize("model", [ConnectionWrite, RoleWrite])
def test_every_field_says_what_it_is(model: type[ConnectionWrite | RoleWrite]) -> None:
    """The OpenAPI document has a sentence for each field."""
    properties = model.model_json_schema()["properties"]
    assert all(described["description"].endswith(".") for described in properties.values())
