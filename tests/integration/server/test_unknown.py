"""Whoever shows no token of ours is turned away by the head of a request, and has no place, and no memory, for the rest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

HELD = 3
UNKNOWN = "s." + "unknown" * 5


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Fewer places than connections."""
    settings["server"] |= {"max_in_flight": 2, "body_timeout_s": 5}
    return settings


@pytest.mark.parametrize("header", ["", f"X-Vault-Token: {UNKNOWN}\r\n", "Authorization: Bearer x\r\n"])
async def test_bodies_of_strangers_are_not_waited_for(broker: Any, header: str) -> None:
    """Each hears at once that it is refused, whatever was to come, and others are served meanwhile."""
    host, _, port = broker.address.removeprefix("http://").rpartition(":")
    head = f"POST /v1/auth/token/create HTTP/1.1\r\nHost: broker\r\n{header}Content-Length: 1000000\r\n\r\n{{".encode()
    writers = []
    try:
        for _ in range(HELD):
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(head)
            assert await reader.readline() == b"HTTP/1.1 403 Forbidden\r\n"
        assert (await broker("GET", "auth/token/lookup-self")).status == 200
    finally:
        for writer in writers:
            writer.close()


async def test_refusal_of_a_stranger_is_on_record(broker: Any) -> None:
    """Without the body, as ever."""
    answer = await broker("POST", "auth/token/create", {"display_name": "stranger"}, token=UNKNOWN)
    assert answer.status == 403
    last = broker.audit()[-1]
    assert last["error"] == "permission denied"
    assert "data" not in last["request"]
