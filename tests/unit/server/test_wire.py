"""The verb LIST, given to a parser that does not know it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
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

    def __call__(self, chunks: Sequence[bytes]) -> list[tuple[str, str]]:
        for chunk in chunks:
            messages, _, _ = self.parser.feed_data(chunk)
            self.messages += [(message.method, message.path) for message, _ in messages]
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


async def test_a_head_in_pieces_is_one_request(feed: Feed) -> None:
    """Whatever a later piece of it looks like."""
    pieces = [b"POST" + HEAD + b"X-Text: ", b"LIST /v1/secret HTTP/1.1\r\n", b"\r\n", b"LIST" + HEAD + b"\r\n"]
    assert feed(pieces) == [("POST", "/v1/x"), ("LIST", "/v1/x")]


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


@given(st.lists(st.integers(1, 8), min_size=1, max_size=40))
async def test_a_request_may_come_in_any_pieces(sizes: list[int]) -> None:
    """The method is understood however the bytes were cut."""
    feed = Feed(asyncio.get_running_loop())
    left = b"LIST" + HEAD + b"\r\n"
    chunks = []
    for size in sizes:
        chunks.append(left[:size])
        left = left[size:]
    assert feed([chunk for chunk in (*chunks, left) if chunk]) == [("LIST", "/v1/x")]
