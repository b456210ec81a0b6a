"""Requests with some of their bytes changed, and clients that are too slow."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

ROUNDS = int(os.environ.get("BROKER_HOSTILE_ROUNDS", "80")) // 5
AT_ONCE = 50


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Requests that never end are given up soon."""
    settings["server"] |= {"keepalive_s": 0.2, "body_timeout_s": 0.2}
    return settings


@hypothesis.settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 12), st.binary(max_size=12)), min_size=AT_ONCE, max_size=AT_ONCE))
async def test_mutated_bytes(broker: Any, raw: Callable[..., Any], changes: list[tuple[int, int, bytes]]) -> None:
    """An answer that is not 5xx, or a closed connection; never silence."""
    good = (
        f"POST /v1/database/roles/x?a=b HTTP/1.1\r\nHost: broker\r\nX-Vault-Token: {broker.token}\r\n"
        'Content-Type: application/json\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{"db_name": "pg"  }'
    ).encode()
    sent = [good[:start] + new + good[start + cut :] for start, cut, new in changes]
    for answer in await asyncio.gather(*map(raw, sent)):
        assert not answer or re.match(rb"HTTP/1\.[01] [1-4]\d\d ", answer), answer


async def test_a_slow_body_is_given_up(broker: Any, raw: Callable[..., Any]) -> None:
    """400 that says so, and the connection is closed."""
    head = f"POST /v1/database/roles/x HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {broker.token}\r\nContent-Length: 9\r\n\r\n"
    answer = await raw(head.encode(), b"{")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"did not arrive within 0.2 s" in answer


@pytest.mark.parametrize("head", [b"", b"G", b"LIS", b"GET /v1/sys/health HTTP/1.1\r\nHost:"])
async def test_a_slow_head_is_given_up(raw: Callable[..., Any], head: bytes) -> None:
    """The connection is closed without an answer."""
    assert await raw(head) == b""


async def test_a_body_that_breaks_off(broker: Any, raw: Callable[..., Any]) -> None:
    """Bad chunks are 400."""
    head = (
        f"POST /v1/database/roles/x HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {broker.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = await raw(head.encode(), b"zz\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
