"""From the bytes of a request to what it asks for."""

from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BrokerError, InvalidRequest, NotFound, UnsupportedOperation
from broker.server import incoming


def asked(method: str, target: str) -> tuple[str, str, dict[str, object]]:
    """Operation, path and query of a request."""
    request = make_mocked_request(method, target)
    path, query = incoming.path_of(request), incoming.query_of(request)
    return incoming.operation_of(request, path, query), path, query


@pytest.mark.parametrize(
    ("method", "target", "operation", "path", "query"),
    [
        ("GET", "/v1/a/b", "read", "a/b", {}),
        ("HEAD", "/v1/a", "read", "a", {}),
        ("GET", "/v1/a?x=1&x=2&y=3", "read", "a", {"x": ["1", "2"], "y": "3"}),
        ("GET", "/v1/a?list=true", "list", "a", {}),
        ("GET", "/v1/a?list=T&after=x", "list", "a", {"after": "x"}),
        ("GET", "/v1/a?list=0", "read", "a", {}),
        ("LIST", "/v1/a/", "list", "a/", {}),
        ("POST", "/v1/a", "update", "a", {}),
        ("PUT", "/v1/a", "update", "a", {}),
        ("PATCH", "/v1/a", "patch", "a", {}),
        ("DELETE", "/v1/a?x=1", "delete", "a", {"x": "1"}),
        ("GET", "/v1/a%2Fb%20c", "read", "a/b c", {}),
        ("GET", "/v1/", "read", "", {}),
        ("GET", "/v1/a.b/..c", "read", "a.b/..c", {}),
    ],
)
def test_methods_follow_vault(method: str, target: str, operation: str, path: str, query: dict[str, object]) -> None:
    """PUT is POST, `?list=true` is LIST, and the query is data."""
    assert asked(method, target) == (operation, path, query)


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/", NotFound),
        ("GET", "/v2/a", NotFound),
        ("GET", "/v1", NotFound),
        ("GET", "/ui/", NotFound),
        ("OPTIONS", "/v1/a", UnsupportedOperation),
        ("TRACE", "/v1/a", UnsupportedOperation),
        ("POST", "/v1/a/", InvalidRequest),
        ("GET", "/v1/a?list=maybe", InvalidRequest),
        ("GET", "/v1/a?list=true&list=true", InvalidRequest),
        ("GET", "/v1/a/../b", InvalidRequest),
        ("GET", "/v1/./a", InvalidRequest),
        ("GET", "/v1/%2e%2e/a", InvalidRequest),
        ("GET", "/v1/a%00b", InvalidRequest),
        ("GET", "/v1/a%0Ab", InvalidRequest),
        ("GET", "/v1/" + "a" * 4_097, InvalidRequest),
    ],
)
def test_what_is_no_operation(method: str, target: str, kind: type[BrokerError]) -> None:
    """Each is refused as the caller's mistake."""
    with pytest.raises(kind):
        asked(method, target)


@pytest.mark.parametrize(
    ("body", "content_type", "data"),
    [
        (b"", "application/json", {}),
        (b" \n", "", {}),
        (b"{}", "", {}),
        (b'{"a":[1,null]}', "text/plain", {"a": [1, None]}),
        (b"a=1&b=&a=2", "application/x-www-form-urlencoded", {"a": ["1", "2"], "b": ""}),
        (b'{"a":1}', "application/x-www-form-urlencoded", {"a": 1}),
        (b'\n {"a":1}', "application/x-www-form-urlencoded", {"a": 1}),
        (b"null", "", {}),
    ],
)
def test_bodies(body: bytes, content_type: str, data: dict[str, object]) -> None:
    """JSON whatever the content type says, and forms that do not look like JSON."""
    assert incoming.data_of(body, content_type) == data


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", ""),
        (b"[]", ""),
        (b"1", ""),
        (b'"a"', ""),
        (b"{'a':1}", ""),
        (b'{"a":NaN}', ""),
        (b'{"a":"\\ud800"}', ""),
        (b'{"a":"\xff"}', ""),
        (b"[" * 100_000, ""),
        (b" []", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % n for n in range(1_001)), "application/x-www-form-urlencoded"),
        (b'{"a":[' + b'"",' * 9_999 + b'""]}', ""),
        (b'{"a":' + b"[" * 17 + b"1" + b"]" * 17 + b"}", ""),
    ],
)
def test_what_is_no_body(body: bytes, content_type: str) -> None:
    """Refused, and nothing of it is repeated."""
    with pytest.raises(InvalidRequest) as refusal:
        incoming.data_of(body, content_type)
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize(
    "body", [b'{"a":[' + b'"",' * 9_998 + b'""]}', b'{"a":' + b"[" * 16 + b"1" + b"]" * 16 + b"}", b'{"a":{"b":[{"c":null}]}}']
)
def test_bodies_up_to_their_limits(body: bytes) -> None:
    """10,000 values in all, and 16 levels under a field, pass."""
    assert incoming.data_of(body, "") == json.loads(body)


def test_a_query_of_too_many_fields() -> None:
    """Refused before it is looked at; up to the limit it is read."""
    assert len(asked("GET", "/v1/a?" + "&".join(f"a{n}=1" for n in range(1_000)))[2]) == 1_000
    with pytest.raises(InvalidRequest, match="allowed are 1000"):
        asked("GET", "/v1/a?" + "&" * 1_000)


@given(st.binary(max_size=200), st.sampled_from(["", "application/json", "application/x-www-form-urlencoded"]))
def test_any_bytes_are_read_or_refused(body: bytes, content_type: str) -> None:
    """No bytes make anything but fields or a refusal."""
    try:
        data = incoming.data_of(body, content_type)
    except InvalidRequest:
        return
    json.dumps(data)


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, None),
        ({"X-Vault-Token": ""}, None),
        ({"X-Vault-Token": "a"}, "a"),
        ({"Authorization": "Bearer b"}, "b"),
        ({"X-Vault-Token": "a", "Authorization": "Bearer b"}, "a"),
        ({"X-Vault-Token": "", "Authorization": "Bearer b"}, "b"),
        ({"Authorization": "bearer b"}, None),
        ({"Authorization": "Basic b"}, None),
        ({"Authorization": "Bearer "}, None),
    ],
)
def test_tokens(headers: dict[str, str], token: str | None) -> None:
    """`X-Vault-Token` wins; the prefix of the other is exact."""
    found = incoming.token_of(make_mocked_request("GET", "/v1/a", headers=headers))
    assert (None if found is None else found.reveal()) == token


@pytest.mark.parametrize("namespace", ["", "root", "/", "root/"])
@pytest.mark.parametrize("wrap", [None, "0", "0s", ""])
def test_headers_that_ask_for_nothing(namespace: str, wrap: str | None) -> None:
    """They pass."""
    headers = {"X-Vault-Namespace": namespace, **({} if wrap is None else {"X-Vault-Wrap-TTL": wrap})}
    incoming.check_headers(make_mocked_request("GET", "/v1/a", headers=headers))


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"X-Vault-Namespace": "team"}, NotFound),
        ({"X-Vault-Wrap-TTL": "60"}, InvalidRequest),
        ({"X-Vault-Wrap-TTL": "5m"}, InvalidRequest),
        ({"X-Vault-Wrap-TTL": "-1"}, InvalidRequest),
        ({"X-Vault-Wrap-TTL": "soon"}, InvalidRequest),
    ],
)
def test_headers_that_ask_for_what_is_not_offered(headers: dict[str, str], kind: type[BrokerError]) -> None:
    """Refused rather than ignored: a caller that asked for wrapping must not get the secret in clear."""
    with pytest.raises(kind):
        incoming.check_headers(make_mocked_request("GET", "/v1/a", headers=headers))
