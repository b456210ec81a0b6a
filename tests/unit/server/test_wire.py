"""The verb LIST, given to a parser that does not know it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE
from hypothesis import given
from hypothesis import strategies as st

from broker.server.wire import ListParser

HEAD = b" /v1/x HTTP/1.1\r\nHost: a\r\n"


class Feed:
    """Feeds chunks and collects what was parsed."""

    def __init__(self, loop: Any) -> None:
        inner = HttpRequestParser(BaseProtocol(loop), loop, 2**16, max_line_size=8_190, max_field_size=8_190)
        self.parser = ListParser(inner)
        self.messages: list[tuple[str, str]] = []
        self.bodies: list[Any] = []

    def __call__(self, chunks: Sequence[bytes]) -> list[tuple[str, str]]:
        for chunk in chunks:
            messages, _, _ = self.parser.feed_data(chunk)
            self.messages += [(message.method, message.path) for message, _ in messages]
            self.bodies += [body for _, body in messages]
        return self.messages


@pytest.fixture
async def feed() -> Feed:

    return Feed(asyncio.get_running_loop())


async def test_list_is_a_method(feed: Feed) -> None:
    """Also on a connection that is kept, and between others."""
    assert feed([b"LIST" + HEAD + b"\r\n", b"GET" + HEAD + b"\r\n", b"LIST" + HEAD + b"\r\n"]) == [
        ("LIST", "/v1/x"),
        ("GET", "/v1/x"),
        ("LIST", "/v1/x"),
    ]


async def test_no_body_is_taken_for_a_request(feed: Feed) -> None:
    """A body that looks like a LIST request, arriving by itself, stays a body."""
    body = b"LIST /v1/secret HTTP/1.1\r\n\r\n"
    head = b"PUT" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    assert feed([head, body, b"GET" + HEAD + b"\r\n"]) == [("PUT", "/v1/x"), ("GET", "/v1/x")]


async def test_a_body_in_pieces_stays_a_body(feed: Feed) -> None:
    """Wherever it is cut."""
    head = b"PUT" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert feed([head, b"5\r\n", b"LIST ", b"\r\n0\r\n", b"\r\n", b"LIST" + HEAD + b"\r\n"]) == [
        ("PUT", "/v1/x"),
        ("LIST", "/v1/x"),
    ]


async def test_other_unknown_methods_stay_unknown(feed: Feed) -> None:
    """LIST is the only addition."""
    with pytest.raises(Exception, match="Invalid method"):
        feed([b"LISTEN" + HEAD + b"\r\n"])


BODY = b"LIST /v1/secret HTTP/1.1\r\n\r\n"
REQUESTS = {
    "LIST": b"LIST" + HEAD + b"\r\n",
    "GET": b"GET" + HEAD + b"\r\n",
    "PUT": b"PUT" + HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
}


async def test_list_may_come_behind_others(feed: Feed) -> None:
    """In one piece with them, and after empty lines."""
    sent = b"\r\n" + b"\r\n".join(REQUESTS[verb] for verb in ("LIST", "GET", "LIST", "PUT", "LIST"))
    assert [verb for verb, _ in feed([sent])] == ["LIST", "GET", "LIST", "PUT", "LIST"]


async def test_only_so_many_wait(feed: Feed) -> None:
    """What was sent ahead beyond them is looked at when some were taken, and not before."""
    assert len(feed([REQUESTS["LIST"] * 100])) == MAX_MSG_QUEUE_SIZE
    assert len(feed([b""])) == MAX_MSG_QUEUE_SIZE
    for _ in range(10):
        feed.parser.message_consumed()
    assert feed([b""]) == [("LIST", "/v1/x")] * (MAX_MSG_QUEUE_SIZE + 10)


async def test_what_an_upgraded_connection_says_is_left_alone(feed: Feed) -> None:
    """It is no request any longer, whatever it looks like."""
    upgrade = b"GET" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    messages, upgraded, tail = feed.parser.feed_data(upgrade + REQUESTS["LIST"])
    assert ([message.method for message, _ in messages], upgraded, tail) == (["GET"], True, REQUESTS["LIST"])


@given(st.lists(st.sampled_from(sorted(REQUESTS)), max_size=6), st.lists(st.integers(1, 60), max_size=40))
async def test_requests_may_come_in_any_pieces(verbs: list[str], sizes: list[int]) -> None:
    """Each method is understood however the bytes were cut and joined, and bodies come out whole."""
    feed = Feed(asyncio.get_running_loop())
    left = b"".join(REQUESTS[verb] for verb in verbs)
    chunks = []
    for size in sizes:
        chunks.append(left[:size])
        left = left[size:]
    assert feed([chunk for chunk in (*chunks, left) if chunk]) == [(verb, "/v1/x") for verb in verbs]
    assert [await body.read() for body in feed.bodies] == [BODY if verb == "PUT" else b"" for verb in verbs]


async def test_what_is_held_back_in_a_body_goes_on(feed: Feed) -> None:
    """While nobody reads a body the parser pauses; what follows the body is looked at when it goes on."""
    head, _, body = REQUESTS["PUT"].partition(b"\r\n\r\n")
    feed([head + b"\r\n\r\n"])
    feed.parser.pause_reading()
    feed([body + REQUESTS["LIST"]])
    assert feed([b""]) == [("PUT", "/v1/x"), ("LIST", "/v1/x")]
    assert await feed.bodies[0].read() == BODY
