"""The words of an audit line: Vault's fields, secrets hashed, nothing secret readable."""

from __future__ import annotations

import hashlib
import hmac

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit.chain import is_entry
from broker.audit.entry import (
    NOBODY,
    AuditAuth,
    AuditMount,
    AuditRequest,
    AuditResponse,
    AuditWrap,
    Hasher,
    Scribe,
    rfc3339,
)
from broker.secret import Secret

HASHER = Hasher(b"k" * 32)
SCRIBE = Scribe(HASHER)
MOUNT = AuditMount(point="database/", type="database", accessor="database_1", plugin_class="secret")
AUTH = AuditAuth(
    client_token=Secret("s.token"),
    accessor="acc",
    display_name="token-ci",
    policies=("app", "default"),
    token_policies=("app", "default"),
    metadata={"team": "blue"},
    num_uses=5,
    remaining_uses=4,
    token_type="service",
    token_ttl_s=3600,
    token_issue_ms=1_790_000_000_000,
    allowed=True,
    granting_policies=("app",),
)
REQUEST = AuditRequest(
    id="7c9e", operation="read", path="database/creds/app", mount=MOUNT, remote_address="10.0.0.7", remote_port=40001
)
AT_MS = 1_790_000_000_123


def test_a_request_entry_has_exactly_vaults_fields() -> None:
    """A request entry is this JSON and nothing else."""
    got = orjson.loads(SCRIBE.request(AT_MS, SCRIBE.asked(SCRIBE.caller(AUTH), REQUEST)))
    assert got == {
        "time": "2026-09-21T14:13:20.123000000Z",
        "type": "request",
        "auth": {
            "client_token": HASHER.hash("s.token"),
            "accessor": HASHER.hash("acc"),
            "display_name": "token-ci",
            "policies": ["app", "default"],
            "token_policies": ["app", "default"],
            "policy_results": {
                "allowed": True,
                "granting_policies": [{"name": "app", "namespace_id": "root", "type": "acl"}],
            },
            "metadata": {"team": "blue"},
            "num_uses": 5,
            "remaining_uses": 4,
            "token_type": "service",
            "token_ttl": 3600,
            "token_issue_time": "2026-09-21T14:13:20.000000000Z",
        },
        "request": {
            "id": "7c9e",
            "operation": "read",
            "mount_point": "database/",
            "mount_type": "database",
            "mount_accessor": "database_1",
            "mount_class": "secret",
            "client_token": HASHER.hash("s.token"),
            "client_token_accessor": HASHER.hash("acc"),
            "namespace": {"id": "root"},
            "path": "database/creds/app",
            "remote_address": "10.0.0.7",
            "remote_port": 40001,
        },
    }


def test_a_response_entry_tells_user_and_lease_and_hides_the_password() -> None:
    """The response repeats the request and shows user name and lease id; the password is a hash."""
    response = AuditResponse(
        mount=MOUNT,
        lease_id="database/creds/app/x1",
        data={"username": "v-app-1", "password": Secret("hunter2")},
        warnings=("TTL capped",),
    )
    got = orjson.loads(SCRIBE.response(AT_MS, SCRIBE.asked(SCRIBE.caller(AUTH), REQUEST), response))
    assert got["type"] == "response"
    assert got["request"]["path"] == "database/creds/app"
    assert got["response"] == {
        "mount_point": "database/",
        "mount_type": "database",
        "mount_accessor": "database_1",
        "mount_class": "secret",
        "secret": {"lease_id": "database/creds/app/x1"},
        "data": {"username": "v-app-1", "password": HASHER.hash("hunter2")},
        "warnings": ["TTL capped"],
    }


def test_a_new_token_and_a_wrap_are_hashed_in_the_response() -> None:
    """Tokens and accessors that a response hands out appear as hashes alone."""
    wrap = AuditWrap(
        token=Secret("s.wrap"),
        accessor="wa",
        ttl_s=60,
        creation_ms=AT_MS,
        creation_path="auth/token/create",
        wrapped_accessor="acc",
    )
    got = orjson.loads(SCRIBE.response(AT_MS, SCRIBE.asked(NOBODY, REQUEST), AuditResponse(auth=AUTH, wrap=wrap)))
    assert got["response"]["auth"]["client_token"] == HASHER.hash("s.token")
    assert got["response"]["wrap_info"] == {
        "ttl": 60,
        "token": HASHER.hash("s.wrap"),
        "accessor": HASHER.hash("wa"),
        "creation_time": "2026-09-21T14:13:20.123000000Z",
        "creation_path": "auth/token/create",
        "wrapped_accessor": HASHER.hash("acc"),
    }


def test_the_brokers_own_work_has_no_caller() -> None:
    """Expiry and recovery are written like requests, without auth, token and address."""
    own = AuditRequest(id="b1", operation="revoke", path="database/creds/app/x1")
    got = orjson.loads(SCRIBE.request(AT_MS, SCRIBE.asked(NOBODY, own)))
    assert got["request"] == {"id": "b1", "operation": "revoke", "namespace": {"id": "root"}, "path": "database/creds/app/x1"}
    assert "auth" not in got


def test_a_refusal_is_told() -> None:
    """An error stands in its own field, without a response."""
    got = orjson.loads(SCRIBE.response(AT_MS, SCRIBE.asked(NOBODY, REQUEST), None, error="permission denied"))
    assert got["error"] == "permission denied"
    assert "response" not in got


def test_a_denial_is_told_although_it_is_false() -> None:
    """`allowed: false` is not taken for an empty field."""
    got = orjson.loads(SCRIBE.request(AT_MS, SCRIBE.asked(SCRIBE.caller(AuditAuth(display_name="x", allowed=False)), REQUEST)))
    assert got["auth"]["policy_results"] == {"allowed": False}


def test_strings_are_hashed_at_any_depth_and_the_rest_stays_clear() -> None:
    """Strings in lists and objects are hashed; numbers, booleans, null and keys are not; names of users and leases stay."""
    data = {
        "ttl": 60,
        "big": 1 << 70,
        "ratio": 0.5,
        "on": True,
        "none": None,
        "text": "t",
        "list": ["a", 1, {"deep": "d", "username": "u"}],
        "lease_id": "l",
        "username": ["not a string"],
    }
    request = AuditRequest(id="1", operation="update", path="p", data=data)
    raw = SCRIBE.request(AT_MS, SCRIBE.asked(NOBODY, request))
    assert b'"big":1180591620717411303424,' in raw
    got = orjson.loads(raw.replace(b"1180591620717411303424", b"0"))["request"]["data"]
    assert got == {
        "ttl": 60,
        "big": 0,
        "ratio": 0.5,
        "on": True,
        "none": None,
        "text": HASHER.hash("t"),
        "list": [HASHER.hash("a"), 1, {"deep": HASHER.hash("d"), "username": "u"}],
        "lease_id": "l",
        "username": [HASHER.hash("not a string")],
    }


def test_a_secret_under_a_clear_key_is_hashed_all_the_same() -> None:
    """A value typed as secret never stays clear, whatever its key."""
    request = AuditRequest(id="1", operation="update", path="p", data={"username": Secret("s3")})
    assert orjson.loads(SCRIBE.request(AT_MS, SCRIBE.asked(NOBODY, request)))["request"]["data"] == {
        "username": HASHER.hash("s3")
    }


def test_deep_nesting_is_cut_rather_than_refused() -> None:
    """Data nested deeper than the encoder can follow still makes an entry."""
    data: object = "x"
    for _ in range(900):
        data = [data]
    raw = SCRIBE.request(AT_MS, SCRIBE.asked(NOBODY, AuditRequest(id="1", operation="update", path="p", data={"a": data})))
    assert b"[nested too deeply]" in raw


def test_lone_surrogates_can_be_hashed() -> None:
    """Text that JSON can carry and UTF-8 can't is hashed, not refused."""
    assert HASHER.hash("\ud800") != HASHER.hash("?")


def test_the_hash_is_hmac_sha256_under_a_derived_key() -> None:
    """The hash can be computed by whoever has the key, by the documented rule."""
    derived = hmac.digest(b"k" * 32, b"broker/audit/value/v1", hashlib.sha256)
    assert HASHER.hash("hunter2") == "hmac-sha256:" + hmac.new(derived, b"hunter2", hashlib.sha256).hexdigest()
    assert Hasher(b"l" * 32).hash("hunter2") != HASHER.hash("hunter2")


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (999, "1970-01-01T00:00:00.999000000Z"),
        (-1, "1969-12-31T23:59:59.999000000Z"),
        (1_582_934_400_007, "2020-02-29T00:00:00.007000000Z"),
    ],
)
def test_times_are_rfc3339_in_utc(at_ms: int, text: str) -> None:
    """Times have nine digits of fraction and end in Z."""
    assert rfc3339(at_ms) == text


_texts = st.text(st.characters(codec="utf-8"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_texts, _json, max_size=5), _texts)
def test_any_data_becomes_one_entry_without_its_secret(data: dict[str, object], other: str) -> None:
    """Whatever JSON a caller sends, it becomes one line, and a marked secret in it can't be read."""
    secret = "SECRET-" + other
    wild = {**data, "nested": {"list": [data, secret]}, "typed": Secret(secret)}
    raw = SCRIBE.response(
        AT_MS,
        SCRIBE.asked(NOBODY, AuditRequest(id="1", operation="update", path="p", data=wild)),
        AuditResponse(data=wild),
    )
    assert is_entry(raw)
    assert b"SECRET-" not in raw
