"""The load generator: its own process, against a small server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from broker.bench.load import Order, decode, encode, measure, open_load
from broker.errors import Unavailable
from broker.secret import Secret

BODY = b'{"lease_id":"database/creds/app/1","data":{"username":"v-pool-app","password":"p"}}'


class Server:
    """Answers every request with one lease, or with what a test puts in its place; remembers the paths."""

    def __init__(self) -> None:
        self.port = 0
        self.paths: list[str] = []
        self.asked = asyncio.Event()
        self.status, self.body = b"200 OK", BODY

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        while head := await self._head(reader):
            self.paths.append(head.split(b" ")[1].decode())
            self.asked.set()
            length = str(len(self.body)).encode()
            writer.write(b"HTTP/1.1 " + self.status + b"\r\nContent-Length: " + length + b"\r\n\r\n" + self.body)
        writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server on a free port."""
    made = Server()
    listener = await asyncio.start_server(made.talk, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield made


def order(server: Server, **rest: object) -> Order:
    """A small load on it."""
    fields: dict[str, object] = {"requests": 20, "clients": 3, "path": "/v1/database/creds/app", **rest}
    return Order(host="127.0.0.1", port=server.port, token=Secret("s.token"), **fields)  # type: ignore[arg-type]


async def test_as_many_requests_are_made_as_were_ordered(server: Server) -> None:
    """The count is exact, whatever the number of clients, and each is timed."""
    figure = (await measure(order(server))).figure
    assert (figure.done, figure.errors, len(server.paths)) == (20, 0, 20)
    assert len(figure.latencies_us) == 20
    assert list(figure.latencies_us) == sorted(figure.latencies_us)


async def test_wanted_fields_come_back(server: Server) -> None:
    """What a scenario needs later is kept, in the order asked for."""
    result = await measure(order(server, requests=2, keep=("lease_id", "username")))
    assert result.kept == [["database/creds/app/1", "v-pool-app"]] * 2


async def test_a_reply_without_the_expected_text_is_an_error(server: Server) -> None:
    """A lease that did not come from the pool is no figure for the pool; its password is not shown."""
    figure = (await measure(order(server, expect="-elsewhere-"))).figure
    assert figure.done == 0
    assert figure.errors == 3
    assert figure.first_error == "a reply without '-elsewhere-'"


async def test_errors_are_counted_and_end_their_client(server: Server) -> None:
    """A server that refuses fast is not asked a million times."""
    server.status, server.body = b"503 Service Unavailable", b'{"errors":["not now"]}'
    figure = (await measure(order(server))).figure
    assert (figure.done, figure.errors) == (0, 3)
    assert figure.first_error == 'HTTP 503: {"errors":["not now"]}'


async def test_a_load_asks_nothing_before_go_and_ends_when_told(server: Server) -> None:
    """Its clock starts with `go`; `stop` lets what is under way finish."""
    async with open_load(order(server, requests=0)) as load:
        assert server.paths == []
        load.go()
        await server.asked.wait()
        load.stop()
        figure = (await load.result()).figure
    assert figure.done == len(server.paths) > 0


async def test_the_time_left_is_asked_for_where_leases_shall_end_together(server: Server) -> None:
    """`{ttl}` is whole seconds, at least one."""
    await measure(order(server, path="/due-{ttl}", due_in_s=5.5, requests=3))
    assert set(server.paths) == {"/due-6"}
    server.paths.clear()
    await measure(order(server, path="/due-{ttl}", due_in_s=0.001, requests=3))
    assert all(re.fullmatch("/due-1", path) for path in server.paths)


async def test_a_generator_that_can_not_connect_says_so(server: Server) -> None:
    """No figure is better than a wrong one."""
    unreachable = Order(host="127.0.0.1", port=1, token=Secret("s.token"), path="/", clients=1)
    with pytest.raises(Unavailable, match="without a result"):
        await measure(unreachable)


def test_an_order_survives_its_line() -> None:
    """What the parent writes is what the generator reads; the token prints nothing."""
    sent = Order(host="h", port=1, token=Secret("s.token"), path="/p", clients=2, keep=("lease_id",))
    assert decode(encode(sent)) == sent
    assert "s.token" not in repr(sent)
