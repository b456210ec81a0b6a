"""Methods, headers, envelope: the framing of every answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

ENVELOPE = {
    "request_id",
    "lease_id",
    "renewable",
    "lease_duration",
    "data",
    "wrap_info",
    "warnings",
    "auth",
    "mount_type",
}


async def test_every_answer_carries_the_headers(broker: Any) -> None:
    """Also an empty one and an error."""
    for method, path in (("GET", "sys/health"), ("DELETE", "database/roles/none"), ("GET", "no/such"), ("GET", "sys/mounts")):
        answer = await broker(method, path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"] == "application/json"
        assert "aiohttp" not in answer.headers["Server"]


async def test_the_envelope_is_whole(broker: Any) -> None:
    """Every key, and an id of its own."""
    first, second = [(await broker("GET", "database/roles/app")).body for _ in range(2)]
    assert set(first) == ENVELOPE
    assert first["mount_type"] == "database"
    assert first["request_id"] != second["request_id"]


@pytest.mark.parametrize("verb", ["POST", "PUT"])
async def test_both_verbs_write(broker: Any, verb: str) -> None:
    """Clients differ in which one they send."""
    answer = await broker(verb, "database/roles/other", {"db_name": "pg"})
    assert (answer.status, answer.raw) == (204, b"")


@pytest.mark.parametrize(
    ("verb", "path"), [("LIST", "database/roles"), ("LIST", "database/roles/"), ("GET", "database/roles?list=true")]
)
async def test_ways_to_list(broker: Any, verb: str, path: str) -> None:
    """The verb, with or without the slash, and the query."""
    answer = await broker(verb, path)
    assert answer.body["data"] == {"keys": ["app"]}
    assert broker.audit()[-1]["request"]["path"] == "database/roles/"
    assert broker.audit()[-1]["request"]["operation"] == "list"


@pytest.mark.parametrize(
    ("method", "path", "status", "errors"),
    [
        ("GET", "database/roles/none", 404, []),
        ("LIST", "auth/token", 404, ["1 error occurred:\n\t* unsupported path\n\n"]),
        ("LIST", "database/roles/app", 404, ["1 error occurred:\n\t* unsupported path\n\n"]),
        ("GET", "database/creds/app?list=true", 404, ["1 error occurred:\n\t* unsupported path\n\n"]),
        ("GET", "database", 404, ["1 error occurred:\n\t* unsupported path\n\n"]),
        ("GET", "database/roles", 405, ["1 error occurred:\n\t* unsupported operation\n\n"]),
        ("GET", "database/creds/app/x", 404, ["1 error occurred:\n\t* unsupported path\n\n"]),
        ("GET", "kv/data/x", 404, ['no handler for route "kv/data/x". route entry not found.']),
        ("POST", "database/creds/app", 405, ["1 error occurred:\n\t* unsupported operation\n\n"]),
        ("PATCH", "database/roles/app", 405, ["1 error occurred:\n\t* unsupported operation\n\n"]),
        ("OPTIONS", "database/roles/app", 405, ["1 error occurred:\n\t* unsupported operation\n\n"]),
        ("POST", "database/roles/", 400, ["cannot write to a path ending in '/'"]),
        ("GET", "database/%2e%2e/x", 400, ["relative paths not supported"]),
        ("GET", "database/roles/a%20b", 400, None),
    ],
)
async def test_refusals(broker: Any, method: str, path: str, status: int, errors: list[str] | None) -> None:
    """Status and text as Vault has them."""
    answer = await broker(method, path)
    assert answer.status == status
    assert errors is None or answer.errors == errors


async def test_outside_of_v1_there_is_nothing(raw: Callable[..., Any]) -> None:
    """An empty list of errors."""
    answer = await raw(b"GET /ui/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b'{"errors":[]}')


async def test_head_has_no_body(broker: Any) -> None:
    """But the status of the read."""
    answer = await broker("HEAD", "database/roles/app")
    assert (answer.status, answer.raw) == (200, b"")


async def test_unknown_parameters_are_named(broker: Any) -> None:
    """As a warning, with those that the path gives already."""
    answer = await broker("POST", "sys/leases/lookup/x", {})
    assert answer.status == 405
    answer = await broker("POST", "auth/token/create", {"zzz": 1, "aaa": 2, "policies": ["default"]})
    assert answer.body["warnings"] == ["Endpoint ignored these unrecognized parameters: [aaa zzz]"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "database/roles/app?zzz=1&aaa=2"),
        ("GET", "database/creds/app?zzz=1&aaa=2"),
        ("LIST", "database/roles?zzz=1&aaa=2"),
    ],
)
async def test_parameters_where_there_are_none_are_named(broker: Any, method: str, path: str) -> None:
    """In the answer and on record."""
    warnings = ["Endpoint ignored these unrecognized parameters: [aaa zzz]"]
    answer = await broker(method, path)
    assert (answer.status, answer.body["warnings"]) == (200, warnings)
    assert broker.audit()[-1]["response"]["warnings"] == warnings


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("database/reset/pg", {"zzz": 1}),
        ("auth/token/revoke", {"token": "none", "zzz": 1}),
        ("sys/leases/revoke-prefix/none", {"prefix": "none"}),
        ("sys/leases/revoke-force/none", {"prefix": "none"}),
    ],
)
async def test_an_answer_without_content_stays_so(broker: Any, path: str, body: dict[str, Any]) -> None:
    """As in Vault: clients hand out something else where there is content, and hvac always sends a prefix twice."""
    answer = await broker("PUT", path, body)
    assert (answer.status, answer.raw) == (204, b"")


async def test_a_form_is_read(broker: Any) -> None:
    """Where the body does not look like JSON."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await broker("POST", "auth/token/create", b"ttl=60&policies=default", headers=headers)
    assert answer.body["auth"]["lease_duration"] == 60


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Vault-Namespace": "root"}, 200),
        ({"X-Vault-Namespace": "team"}, 404),
        ({"X-Vault-Request": "true"}, 200),
        ({"X-Vault-Wrap-TTL": "60s"}, 400),
        ({"Content-Encoding": "gzip"}, 200),
        ({"Accept-Encoding": "gzip"}, 200),
    ],
)
async def test_headers(broker: Any, headers: dict[str, str], status: int) -> None:
    """What is not offered is refused, the rest is fine."""
    assert (await broker("GET", "database/roles/app", headers=headers)).status == status


async def test_a_compressed_body_is_refused(broker: Any) -> None:
    """A small one could grow without bounds."""
    answer = await broker("POST", "database/roles/x", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert answer.status == 400


async def test_bearer_tokens(broker: Any) -> None:
    """The other header works, and `X-Vault-Token` wins over it."""
    bearer = {"Authorization": f"Bearer {broker.token}"}
    assert (await broker("GET", "database/roles/app", token="", headers=bearer)).status == 200
    spaced = {"Authorization": f"Bearer   {broker.token}"}
    assert (await broker("GET", "database/roles/app", token="", headers=spaced)).status == 200
    assert (await broker("GET", "database/roles/app", token="wrong", headers=bearer)).status == 403


@pytest.mark.parametrize(
    ("token", "errors"),
    [
        ("", ["permission denied"]),
        ("s.wrong", ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]),
        ("hvs.CAESIJ", ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]),
        ("ünïcode", ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]),
    ],
)
@pytest.mark.parametrize("path", ["database/creds/app", "no/such/path", "sys/mounts"])
async def test_without_a_token_nothing_is_told(broker: Any, path: str, token: str, errors: list[str]) -> None:
    """Not even which paths there are."""
    answer = await broker("GET", path, token=token)
    assert (answer.status, answer.errors) == (403, errors)


async def test_a_denial_is_on_record(broker: Any) -> None:
    """Who asked from where for what, and that it was denied."""
    await broker("GET", "database/creds/app", token="s.wrong")
    request, response = broker.audit()[-2:]
    assert request["error"] == response["error"] == "permission denied"
    assert request["request"]["path"] == "database/creds/app"
    assert request["request"]["remote_address"] == "127.0.0.1"


async def test_bytes_that_are_no_http(raw: Callable[..., Any]) -> None:
    """An error body of the usual shape, that repeats nothing of what was sent."""
    for sent in (
        b"\x16\x03\x01 hunter22\r\n\r\n",
        b"SCAN /v1/hunter22 HTTP/1.1\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nX-Vault-Token: " + b"hunter22" * 4_000 + b"\r\n\r\n",
        b"GET /v1/hunter22" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nhunter22\r\n\r\n",
    ):
        answer = await raw(sent)
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert b'{"errors":["the request is not valid HTTP' in answer
        assert b"hunter22" not in answer


async def test_a_body_may_wait_to_be_invited(broker: Any, raw: Callable[..., Any]) -> None:
    """`Expect: 100-continue`, as curl sends it for larger bodies."""
    head = (
        f"POST /v1/database/roles/r HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {broker.token}\r\n"
        "Expect: 100-continue\r\nContent-Length: 16\r\nConnection: close\r\n\r\n"
    )
    answer = await raw(head.encode(), b'{"db_name":"pg"}')
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204")


async def test_unforeseen_errors_show_nothing(broker: Any, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is 500 with no text of its own, on record as such."""

    def burst(_self: object, _name: str) -> None:
        raise RuntimeError("hunter22")

    monkeypatch.setattr("broker.catalog.catalog.Catalog.role_shown", burst)
    answer = await broker("GET", "database/roles/app")
    assert (answer.status, answer.errors) == (500, ["internal error"])
    assert broker.audit()[-1]["error"] == "internal error"
