"""Requests that are sent before the one before is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Room for bodies that have to wait in the socket while another request is answered."""
    settings["server"]["max_body_bytes"] = 1 << 20
    return settings


@pytest.mark.parametrize(("rounds", "length"), [(40, 0), (40, 2_000), (4, 40_000)])
@pytest.mark.parametrize("chunk", [9_973, 1 << 30])
async def test_requests_may_be_sent_ahead(broker: Any, raw: Callable[..., Any], rounds: int, length: int, chunk: int) -> None:
    """More than wait their turn, LIST and long bodies among them, in one piece or cut anywhere; each is answered, in order."""
    head = f" HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {broker.token}\r\n"
    body = b'{"db_name":"pg","creation_statements":["%s"]}' % b'","'.join([b"LIST /v1/x HTTP/1.1 "] * (length // 100))
    body += b" " * (length * 20 - len(body))
    a_round = (
        f"LIST /v1/database/roles{head}\r\n\r\nPUT /v1/database/roles/long{head}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        + f"LIST /v1/database/nothing{head}\r\n".encode()
    )
    sent = a_round * rounds + f"GET /v1/sys/health{head}Connection: close\r\n\r\n".encode()
    answers = (await raw(*(sent[at : at + chunk] for at in range(0, len(sent), chunk)))).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 204, 404] * rounds + [200]
