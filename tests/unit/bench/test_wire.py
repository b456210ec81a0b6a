"""The lean HTTP client against bytes as servers send them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from broker.bench.wire import LOST, Connection, connect, get_request

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\nhello world"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"


class Heard:
    """What a connection told."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, bytes]] = []
        self.arrived = asyncio.Event()

    def __call__(self, _connection: Connection, status: int, body: bytes) -> None:
        self.replies.append((status, body))
        self.arrived.set()


def told(pieces: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """What is made of bytes that arrive in these pieces."""
    heard: list[tuple[int, bytes]] = []
    connection = Connection(lambda _, status, body: heard.append((status, body)))
    for piece in pieces:
        connection.data_received(piece)
    return heard


@pytest.mark.parametrize("cut", range(1, len(OK)))
def test_a_reply_is_told_once_however_it_is_cut(cut: int) -> None:
    """TCP keeps no message boundaries."""
    assert told([OK[:cut], OK[cut:]]) == [(200, b"hello world")]


def test_a_reply_without_a_body_is_complete_at_its_head() -> None:
    """204 has no length."""
    assert told([NO_CONTENT]) == [(204, b"")]


def test_the_name_of_the_length_is_taken_in_any_case() -> None:
    """Header names have no case."""
    assert told([OK.replace(b"Content-Length", b"content-LENGTH")]) == [(200, b"hello world")]


def test_a_reply_of_unknown_length_counts_as_lost() -> None:
    """It is not guessed where it ends."""
    assert told([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])[0][0] == LOST


def test_two_replies_leave_nothing_between_them() -> None:
    """A connection is used again and again."""
    assert told([OK, NO_CONTENT, OK]) == [(200, b"hello world"), (204, b""), (200, b"hello world")]


def test_a_request_carries_the_token_in_its_header() -> None:
    """As every client of Vault sends it."""
    request = get_request("host", "/v1/database/creds/app", "s.token")
    assert request.startswith(b"GET /v1/database/creds/app HTTP/1.1\r\n")
    assert b"\r\nX-Vault-Token: s.token\r\n" in request
    assert request.endswith(b"\r\n\r\n")


async def test_the_end_of_a_connection_is_told_as_lost() -> None:
    """A server that hangs up is an error and no silence."""
    heard = Heard()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await connect("127.0.0.1", port, heard)
        await heard.arrived.wait()
    assert heard.replies[0][0] == LOST


async def test_sending_on_a_closed_connection_is_told_as_lost() -> None:
    """The caller need not look before it sends."""
    heard = Heard()
    connection = Connection(heard)
    connection.send(b"GET / HTTP/1.1\r\n\r\n")
    await heard.arrived.wait()
    assert heard.replies == [(LOST, b"the connection is closed")]
