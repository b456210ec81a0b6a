"""The fields of a connection."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from broker.engines.protocol import Origin
from broker.errors import InvalidRequest
from broker_postgresql import Engine
from broker_postgresql.connector import application_name
from broker_postgresql.settings import OPEN_WAY, PASSWORD_IN_URL, ConnectionSettings, read_settings, shown, warnings_about
from broker_postgresql.terms import RoleOptions

URL = "postgresql://{{username}}:{{password}}@h/d"


def config(**fields: Any) -> dict[str, Any]:
    """A connection's fields."""
    return {"connection_url": URL, "username": "me", "password": "hush", **fields}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("standbys", value) for value in ("a", "a:1,b", ["a:1", "b"], [])),
        *(("max_connection_lifetime", value) for value in (0, 60, "1h30m")),
        *(("password_authentication", value) for value in ("", "password", "scram-sha-256")),
        *(("max_idle_connections", value) for value in (-1, 0, 1000)),
        ("disable_escaping", True),
        ("password", "hush"),
    ],
)
def test_schemas_take_what_the_engine_takes(field: str, value: Any) -> None:
    """Each way in which a field may be written is one that its JSON Schema allows."""
    read_settings(config(**{field: value}))
    assert Draft202012Validator(Engine.fields.connection[field]).is_valid(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("standbys", 1),
        ("max_connection_lifetime", -1),
        ("password_authentication", "md5"),
        ("max_open_connections", 1001),
        ("scram_iterations", 0),
        ("password", 1),
        ("username", "a" * 64),
    ],
)
def test_schemas_refuse_what_the_engine_refuses(field: str, value: Any) -> None:
    """What a JSON Schema can say of a field's limits, those of the fields do say."""
    assert not Draft202012Validator(Engine.fields.connection[field]).is_valid(value)
    with pytest.raises(InvalidRequest):
        read_settings(config(**{field: value}))


def test_schemas_name_every_field_and_its_secrets() -> None:
    """As many as the engine reads; what is never shown again is for writing alone."""
    for model, fields in ((ConnectionSettings, Engine.fields.connection), (RoleOptions, Engine.fields.role)):
        assert set(fields) == model.model_fields.keys()
        for name, field in fields.items():
            Draft202012Validator.check_schema(field)
            assert field["description"].endswith(".")
            assert "$ref" not in str(field)
            assert field.get("writeOnly", False) == (name in Engine.secret_fields)


def test_defaults_are_vaults_and_ours() -> None:
    """Four connections, all of them kept, for ever; verifiers of 4096 iterations."""
    settings = read_settings(config())
    assert (settings.open_connections, settings.idle_connections, settings.max_connection_lifetime) == (4, 4, 0)
    assert settings.sends_verifier
    assert settings.scram_iterations == 4096


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("a", (("a", 5432),)),
        (" a:1 , [::1]:2,", (("a", 1), ("::1", 2))),
        (["10.0.0.1:6000", "b"], (("10.0.0.1", 6000), ("b", 5432))),
    ],
)
def test_standbys_are_hosts_with_ports(written: object, read: object) -> None:
    """In a list or with commas between, the usual port where none is named, IPv6 in brackets; none at all where nothing is said."""
    assert read_settings(config(standbys=written)).standbys == read


def test_numbers_may_come_as_text() -> None:
    """Clients of Vault send numbers and durations as text."""
    settings = read_settings(config(max_open_connections="8", max_idle_connections="-1", max_connection_lifetime="1h30m"))
    assert (settings.open_connections, settings.idle_connections, settings.max_connection_lifetime) == (8, 0, 5400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connection_url", ""),
        ("connection_url", 5),
        ("connection_url", "mysql://h"),
        ("connection_url", f"{URL}\x00"),
        ("username", "u" * 64),
        ("username", "{{password}}"),
        ("password", "x{{username}}"),
        ("password", ["hush-list"]),
        ("max_open_connections", -1),
        ("max_open_connections", 1001),
        ("max_open_connections", "many"),
        ("max_connection_lifetime", "soon"),
        ("password_authentication", "md5"),
        ("scram_iterations", 0),
        ("username_template", "{{random 3}}"),
        ("username_template", "{{.Oops}}"),
        ("tls_certificate", "only one half"),
        ("disable_escaping", "perhaps"),
        ("standbys", 5),
        ("standbys", [5]),
        ("standbys", {"host": "a"}),
        ("standbys", "a:b"),
        ("standbys", "a..b"),
        ("standbys", "a:0"),
        ("standbys", "a:70000"),
        ("standbys", ":5432"),
        ("standbys", "::1"),
        ("standbys", ["a"] * 17),
    ],
)
def test_wrong_fields_are_refused(field: str, value: object) -> None:
    """A field that can't work is refused, and no value is repeated."""
    with pytest.raises(InvalidRequest) as caught:
        read_settings(config(**{field: value}))
    assert "hush" not in str(caught.value)


def test_wrong_pem_is_refused_when_the_engine_is_made() -> None:
    """Certificates that can't be read are refused before anything is connected, without showing them."""
    origin = Origin(broker="b", boot="x")
    for fields in ({"tls_ca": "hush-ca"}, {"tls_certificate": "hush-cert", "private_key": "hush-key"}):
        with pytest.raises(InvalidRequest, match="tls_ca") as caught:
            Engine("c", config(**fields), origin)
        assert "hush" not in str(caught.value)


def test_odd_fields_are_warned_of() -> None:
    """Unknown fields, parameters without effect and a password in the URL are each answered with a sentence."""
    found = warnings_about(config(connection_url="postgresql://u:p@h/d?options=x", colour="red", auth_type="gcp_iam"))
    assert [warning.split(":")[0] for warning in found[:3]] == ["auth_type", "colour", "connection_url"]
    assert found[3] == PASSWORD_IN_URL
    assert not warnings_about(config(connection_url=f"{URL}?sslmode=disable"))


@pytest.mark.parametrize(
    ("where", "fields", "warned"),
    [
        ("db.example/d", {}, True),
        ("db.example/d?sslmode=allow", {}, True),
        ("192.0.2.1/d", {}, True),
        ("127.0.0.1,db.example/d", {}, True),
        ("127.0.0.1/d", {"standbys": ["db.example:5432"]}, True),
        ("127.0.0.1/d", {}, False),
        ("[::1]/d", {}, False),
        ("localhost/d", {}, False),
        ("/d?host=/run/postgresql", {}, False),
        ("db.example/d", {"tls_ca": "a"}, False),
        *((f"db.example/d?sslmode={mode}", {}, False) for mode in ("disable", "require", "verify-ca", "verify-full")),
    ],
)
def test_way_that_may_be_open_is_warned_of(where: str, fields: dict[str, Any], warned: bool) -> None:  # noqa: FBT001 - a parameter
    """Whoever leaves `sslmode` out hears that TLS is not insisted on, unless the way never leaves the machine."""
    found = warnings_about(config(connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@{where}", **fields))
    assert (OPEN_WAY in found) == warned


def test_secret_fields_are_never_shown() -> None:
    """What is read back lacks password and private key, keeps the rest as it was written, and masks the URL."""
    fields = config(connection_url="postgresql://u:hush@h/d", private_key="hush", max_open_connections="8", odd=[1])
    assert shown(fields) == {
        "connection_url": "postgresql://u:xxxxx@h/d",
        "username": "me",
        "max_open_connections": "8",
        "odd": [1],
    }


def test_session_names_fit_and_tell_boots_apart() -> None:
    """A session's name is never cut by the server, whatever a boot's id is like, and differs from boot to boot."""
    assert application_name(Origin(broker="b1", boot="x1")) == "broker/b1/x1"
    long = [application_name(Origin(broker="b1", boot="x" * 80 + end)) for end in "ab"]
    assert all(len(name) <= 63 and name.startswith("broker/b1/") for name in long)
    assert long[0] != long[1]
