"""A server that does not keep to the protocol costs its own connection, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker.model import Terms
from broker_postgresql import Engine

LETS_IN = b"R\x00\x00\x00\x08\x00\x00\x00\x00" + b"S\x00\x00\x00\x18server_version\x0018.0\x00" + b"Z\x00\x00\x00\x05I"
"""No password asked for, a version, and ready for the first query."""
BROKEN = {
    "a length below nothing": b"D\xff\xff\xff\xff" + bytes(40),
    "zeros": bytes(100),
    "a message of a gigabyte": b"D\x40\x00\x00\x00" + bytes(40),
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("greeting", [b"", LETS_IN], ids=["at the login", "as an answer"])
async def test_server_that_breaks_the_protocol_is_left_and_named(greeting: bytes, sent: bytes) -> None:
    """The driver alone would go round for ever, with all of the broker, or fill the memory; here the error says what came."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            await reader.read(1_000)
            if greeting:
                writer.write(greeting)
                await reader.read(1_000)
            writer.write(sent)
            await reader.read()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/postgres?sslmode=disable"
        engine = Engine("odd", {"connection_url": url, "username": "u", "password": "p"}, Origin(broker="b", boot="x"))
        with pytest.raises(
            DatabaseUnavailable, match=r"the server (broke the protocol|sent a message of|answered with more than)"
        ):
            await engine.open()
        await engine.close()


async def test_statements_that_raise_a_book_keep_nobody_busy(scene: Any) -> None:
    """An error of megabytes is not read: the connection is cut, the user is not there, and the next one is made."""
    told = "CREATE ROLE \"{{name}}\"; DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 2000000); END $$"
    order = await scene.order(Terms(creation=(told,)))
    with pytest.raises(DatabaseUnavailable, match=r"the server sent a message of 2000\d+ bytes"):
        await scene.engine.create(order)
    assert not await scene.exists(order.user.name)
    await scene.create()
