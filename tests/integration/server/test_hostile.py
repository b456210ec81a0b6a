"""Whatever is sent, the answer is a proper one: never 5xx, always the shape of an error, and the broker goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from broker.api import auth
from broker.api import database as database_api
from broker.api import leases as leases_api
from broker.server.routes import specs

HOW_MANY = int(os.environ.get("BROKER_HOSTILE_ROUNDS", "80"))
"""Rounds of each test here, of some thirty requests at once: about 10,000 requests in all, and more on demand."""

hostile = hypothesis.settings(
    max_examples=HOW_MANY,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
ODD = (
    "",
    "a",
    "'",
    '"',
    "\\",
    "a'b\"c",
    "{{name}}",
    "{{",
    "%",
    "$1",
    ";--",
    "\x00",
    "a\x00b",
    "\n",
    "é",
    "漢字",
    "🔑",
    "\u202e",
    "a" * 300,
)
odd_text = st.sampled_from(ODD) | st.text(max_size=40)
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 2**64, 1e308, 10**30])
values = st.recursive(
    st.none() | st.booleans() | numbers | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=10,
)
MODELS = (
    database_api.ConnectionWrite,
    database_api.RoleWrite,
    leases_api.LeaseRenew,
    leases_api.LeaseRevoke,
    leases_api.StuckQuery,
    auth.TokenCreate,
    auth.TokenRenew,
    auth.AccessorRenew,
)
FIELDS = sorted({field for model in MODELS for field in model.model_fields} | {"connection_url", "username", "grant_roles"})
objects = st.dictionaries(st.sampled_from(FIELDS) | odd_text, values, max_size=6)


def as_json(value: object) -> bytes:
    """JSON as Python writes it, legal or not: NaN and half characters among it."""
    return json.dumps(value).encode()


bodies = objects.map(as_json) | values.map(as_json) | st.binary(max_size=60) | objects.map(lambda value: as_json(value)[:-1])
PATTERNS = sorted(
    {
        re.sub(r"\{.*\}", "{}", route.pattern)
        for table in specs.TABLES
        for route in table.routes
        if not route.pattern.endswith("revoke-self")  # it would end the root token that the test goes on with
    }
    | {"{}", "auth/{}"}
)
paths = st.builds(
    lambda pattern, text: pattern.format(quote(text, safe="", errors="surrogatepass")), st.sampled_from(PATTERNS), odd_text
)
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "LIST", "PATCH", "HEAD", "OPTIONS"])
headers = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "X-Vault-Wrap-TTL", "X-Vault-Namespace", "Idempotency-Key", "Authorization", "Content-Encoding"]
    ),
    st.sampled_from(
        ["", "0", "-1", "x" * 300, "application/x-www-form-urlencoded", "gzip", "ü", "Bearer x", "application/json"]
    ),
    max_size=2,
)
Requests = Sequence[tuple[str, str, bytes, dict[str, str]]]


def check(answer: Any, method: str) -> None:
    """An answer of the right form, and not the broker's fault."""
    assert answer.status < 500, answer.raw
    assert answer.headers["Content-Type"] == "application/json"
    if answer.status >= 400 and method != "HEAD":
        assert set(answer.body) == {"errors"}
        assert all(isinstance(text, str) for text in answer.errors)
        assert "Traceback" not in str(answer.errors)


@hostile
@given(st.lists(st.tuples(methods, paths, bodies, headers), min_size=30, max_size=40))
async def test_any_request_to_any_endpoint(broker: Any, requests: Requests) -> None:
    """With a token that may do everything, so that nothing stops the request on its way in."""
    answers = await asyncio.gather(*(broker(method, path, body, headers=sent) for method, path, body, sent in requests))
    for answer, (method, *_) in zip(answers, requests, strict=True):
        check(answer, method)
    assert (await broker("GET", "sys/health")).status == 200


@hostile
@given(st.lists(st.tuples(st.sampled_from(PATTERNS), objects), min_size=30, max_size=40))
async def test_objects_for_every_endpoint_that_writes(broker: Any, requests: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Well-formed JSON of the right fields with wrong contents."""
    for answer in await asyncio.gather(*(broker("POST", pattern.format("x"), as_json(fields)) for pattern, fields in requests)):
        check(answer, "POST")


@hostile
@given(
    st.lists(
        st.tuples(st.sampled_from(PATTERNS), st.sampled_from([*FIELDS, "list", "type", "activecode"]), odd_text),
        min_size=5,
        max_size=15,
    )
)
async def test_queries_for_every_endpoint_that_reads(broker: Any, requests: Sequence[tuple[str, str, str]]) -> None:
    """Odd values in the query."""
    queries = [(pattern, f"{key}={quote(value, safe='', errors='surrogatepass')}") for pattern, key, value in requests]
    for answer in await asyncio.gather(*(broker("GET", f"{pattern.format('x')}?{query}") for pattern, query in queries)):
        check(answer, "GET")


@hostile
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=60), min_size=30, max_size=40))
async def test_any_token_but_a_real_one_is_denied(broker: Any, texts: Sequence[str]) -> None:
    """Always 403."""
    for answer in await asyncio.gather(*(broker("GET", "database/creds/app", token=text) for text in texts)):
        assert answer.status == 403


@pytest.mark.parametrize("name", [text for text in ODD if text and text != "a"])
@pytest.mark.parametrize("collection", ["config", "roles", "creds", "reset"])
async def test_odd_names_are_refused(broker: Any, collection: str, name: str) -> None:
    """With 400, before anything is kept under them."""
    method = "GET" if collection == "creds" else "POST"
    body = {"db_name": "pg", "plugin_name": "memory-database-plugin"}
    answer = await broker(method, f"database/{collection}/{quote(name, safe='')}", body)
    assert answer.status == 400
    assert (await broker("LIST", "database/roles")).body["data"] == {"keys": ["app"]}
    assert (await broker("LIST", "database/config")).body["data"] == {"keys": ["pg"]}


async def test_a_large_body_is_refused(broker: Any, raw: Callable[..., Any]) -> None:
    """413, whether its length was told or not, and before all of it has arrived."""
    answer = await broker("POST", "database/roles/x", b"{" + b" " * 70_000 + b"}")
    assert (answer.status, answer.errors) == (413, ["http: request body too large"])
    head = f"POST /v1/database/roles/x HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {broker.token}\r\n"
    chunks = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    told = raw(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
    untold = raw(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), chunks * 3)
    for early in await asyncio.gather(told, untold):
        assert early.startswith(b"HTTP/1.1 413")


async def test_strangers_do_not_make_the_log_grow(broker: Any) -> None:
    """A large request without a token is refused unread, and leaves no more than two short entries."""
    before = broker.audit_path.stat().st_size
    many = b'{"x":[' + b'"",' * 20_000 + b'""]}'
    answer = await broker("POST", "database/roles/x", many)
    assert (answer.status, answer.errors) == (400, ["the request has too many values; allowed are 10000"])
    assert broker.audit_path.stat().st_size == before
    assert (await broker("POST", "database/roles/x", many, token="")).status == 403
    fewer = b'{"x":[' + b'"",' * 9_000 + b'""]}'
    for token in ("", "s.none"):
        assert (await broker("POST", "database/roles/x", fewer, token=token)).status == 403
    assert broker.audit_path.stat().st_size < before + 8_192


async def test_deep_json_is_refused(broker: Any) -> None:
    """Neither the parser nor the audit log falls over it."""
    for depth in (17, 300, 5_000):
        body = b'{"x":' + b"[" * depth + b"]" * depth + b"}"
        assert (await broker("POST", "database/roles/x", body)).status == 400
