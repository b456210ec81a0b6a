"""Connections and roles as documents: what a write merges over, and what comes back."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.api.database import ConnectionWrite, RoleWrite
from broker.catalog import connections, roles
from broker.catalog.connections import Connection
from broker.catalog.roles import IDENTITY, TOKEN, Role
from broker.errors import InvalidRequest
from broker.model import ConnectionNumber, Document, Terms

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
tuples = st.lists(words, max_size=3).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
options = st.dictionaries(words, json_values, max_size=3)


def _document(kind: str, name: str, body: bytes, number: int = 5) -> Document:
    return Document(kind=kind, name=name, number=number, revision=9, deleted=False, body=body)


@given(
    st.builds(
        Connection,
        number=st.just(ConnectionNumber(5)),
        name=words,
        revision=st.just(9),
        deleted=st.just(value=False),
        plugin_name=words,
        plugin_version=words,
        allowed_roles=tuples,
        root_rotation_statements=tuples,
        password_policy=words,
        details=options,
        cluster=words,
        proven=st.none() | options,
    )
)
def test_a_connection_comes_back_as_it_was(connection: Connection) -> None:
    """Every field survives its document, and the same connection is the same bytes."""
    body = connections.to_body(connection)
    back = connections.from_document(_document(connections.KIND, connection.name, body))
    assert back == connection
    assert connections.to_body(back) == body


@given(
    st.builds(
        Role,
        name=words,
        revision=st.just(9),
        db_name=words,
        written=st.builds(Terms, creation=tuples, revocation=tuples, renewal=tuples, rollback=tuples, options=options),
        default_ttl_s=st.integers(0, 10**9),
        max_ttl_s=st.integers(0, 10**9),
        ttl_jitter=st.integers(0, 50),
        session_grace_s=st.integers(0, 3_600),
        credential_config=st.dictionaries(words, words, max_size=2),
        prepared_users=st.integers(0, 10_000),
        reissue=st.booleans(),
        max_leases=st.integers(0, 10**9),
        lease_owner=st.sampled_from([TOKEN, IDENTITY]),
    )
)
def test_a_role_comes_back_as_it_was(role: Role) -> None:
    """Every field survives its document, and the same role is the same bytes."""
    body = roles.to_body(role)
    back = roles.from_document(_document(roles.KIND, role.name, body))
    assert back == replace(role, terms=roles.decoded(role.written))
    assert roles.to_body(back) == body


def _connection(**fields: Any) -> Connection:
    write = ConnectionWrite.model_validate({"plugin_name": "p", "allowed_roles": "a,b", "url": "u", "password": "x"} | fields)
    return connections.merged(None, "main", write)


def test_a_connections_fields_that_were_not_sent_stay() -> None:
    """An update merges over what is stored, known fields and the engine's own alike; a null takes away one of the engine's."""
    old = replace(_connection(), number=ConnectionNumber(5), revision=9)
    new = connections.merged(old, "main", ConnectionWrite.model_validate({"url": "v", "password_policy": "q"}))
    assert new == replace(old, details={"url": "v", "password": "x"}, password_policy="q")
    without = connections.merged(old, "main", ConnectionWrite.model_validate({"password": None, "allowed_roles": None}))
    assert without == replace(old, details={"url": "u"})
    emptied = connections.merged(old, "main", ConnectionWrite.model_validate({"allowed_roles": []}))
    assert emptied.allowed_roles == ()


def test_a_new_connection_names_its_plugin() -> None:
    """Without one it is refused, naming the field."""
    with pytest.raises(InvalidRequest, match="plugin_name"):
        connections.merged(None, "main", ConnectionWrite())


@pytest.mark.parametrize(
    ("allowed", "role", "allows"),
    [
        ((), "app", False),
        (("app",), "app", True),
        (("app",), "app2", False),
        (("",), "app", False),
        (("*",), "app", True),
        (("app*",), "app2", True),
        (("app*",), "myapp", False),
        (("*app",), "myapp", True),
        (("*app",), "app2", False),
        (("*pp*",), "app2", True),
        (("a*p",), "app", False),
        (("a*p",), "a*p", True),
        (("x", "ap*"), "app", True),
        (("APP",), "app", False),
    ],
)
def test_who_may_use_a_connection(allowed: tuple[str, ...], role: str, allows: bool) -> None:  # noqa: FBT001 - a table
    """Exact names, or a star at either end; none allowed means nobody."""
    assert replace(_connection(), allowed_roles=allowed).allows(role) is allows


def _role(**fields: Any) -> Role:
    write = RoleWrite.model_validate({"db_name": "main", "creation_statements": "c", "owned_objects": "drop"} | fields)
    return roles.merged(None, "app", write)


def test_a_roles_fields_that_were_not_sent_stay() -> None:
    """An update merges over what is stored; what is sent empty is emptied, and a null takes away an option."""
    old = _role(
        default_ttl="1h",
        max_ttl=7_200,
        prepared_users=5,
        reissue=True,
        max_leases=3,
        ttl_jitter=20,
        session_grace="15m",
        lease_owner="identity",
    )
    assert (old.default_ttl_s, old.max_ttl_s, old.path) == (3_600, 7_200, "database/creds/app")
    assert roles.merged(old, "app", RoleWrite()) == old
    new = roles.merged(
        old, "app", RoleWrite.model_validate({"creation_statements": [], "prepared_users": 0, "reassign_to": "x"})
    )
    without = roles.merged(old, "app", RoleWrite.model_validate({"owned_objects": None, "misspelt": None, "max_leases": None}))
    assert without == replace(old, written=replace(old.written, options={}), terms=replace(old.terms, options={}))
    terms = replace(old.terms, creation=(), options={"owned_objects": "drop", "reassign_to": "x"})
    assert new == replace(old, prepared_users=0, written=terms, terms=terms)


def test_a_role_kept_before_a_field_was_there_has_its_default() -> None:
    """A document of an earlier version is read: what it doesn't say is as it was then."""
    body = orjson.loads(roles.to_body(_role(ttl_jitter=20, session_grace=9, lease_owner="identity", default_ttl=60)))
    del body["ttl_jitter"], body["session_grace_s"], body["lease_owner"]
    back = roles.from_document(_document(roles.KIND, "app", orjson.dumps(body)))
    assert (back.ttl_jitter, back.session_grace_s, back.lease_owner, back.default_ttl_s) == (0, 0, "token", 60)


@pytest.mark.parametrize("field", ["creation", "revocation", "renew", "rollback"])
def test_encoded_statements_are_done_decoded_and_kept_as_written(field: str) -> None:
    """A JSON list, here in base64, is what Vault's clients may send; it is read back as it came."""
    text = base64.b64encode(b'["one {{name}}", "two"]').decode()
    role = _role(**{f"{field}_statements": text})
    back = roles.from_document(_document(roles.KIND, role.name, roles.to_body(role)))
    for each in (role, back):
        assert getattr(each.terms, {"renew": "renewal"}.get(field, field)) == ("one {{name}}", "two")
        assert roles.shown(each)[f"{field}_statements"] == [text]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"db_name": ""}, "database name is required"),
        ({"default_ttl": 60, "max_ttl": 30}, "default_ttl"),
        ({"renew_statements": '["a\\u0000b"]'}, "renew_statements: a NUL"),
    ],
)
def test_a_role_that_makes_no_sense_is_refused(fields: dict[str, Any], told: str) -> None:
    """No connection, a default over its maximum, a NUL that only decoding shows."""
    with pytest.raises(InvalidRequest, match=told):
        _role(**fields)


def test_a_role_is_shown_with_vaults_names() -> None:
    """Statements, times and our own fields stand side by side."""
    shown = roles.shown(_role(default_ttl=60, credential_config={"password_policy": "p"}))
    assert shown["creation_statements"] == ["c"]
    assert (shown["default_ttl"], shown["max_ttl"], shown["credential_type"]) == (60, 0, "password")
    assert shown["owned_objects"] == "drop"
    assert shown["credential_config"] == {"password_policy": "p"}
