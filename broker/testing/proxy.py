"""A network between broker and database that a test can slow down, stall and cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Self

from broker.testing import ports

_CHUNK = 65_536


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to `host:port`, as fast as the test allows. `async with` runs it."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        """How long each piece of data is held back, in either direction."""
        self.arrivals = asyncio.Semaphore(0)
        """Released once for each connection that came."""
        self._target = (host, port)
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._held: socket.socket | None = None
        """Keeps the port ours while nobody listens there."""
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        if self._held is not None:
            self._held.close()
            self._held = None

    def stall(self) -> None:
        """From now on nothing gets through, and nobody is told: connections are accepted and stay open."""
        self._flows.clear()

    def resume(self) -> None:
        """What was held back goes on its way."""
        self._flows.set()

    async def cut(self) -> None:
        """Ends every connection and refuses new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def restore(self) -> None:
        """Accepts connections again, on the same port."""
        if self._held is None:
            self._held = ports.reserve()
            self.port = ports.number_of(self._held)
        if self._server is None:
            listening = socket.create_server(("127.0.0.1", self.port))
            self._server = await asyncio.start_server(self._serve, sock=listening)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        self.arrivals.release()
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            await self._flows.wait()
            there, onwards = await asyncio.open_connection(*self._target)
            with contextlib.closing(onwards):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass(reader, onwards))
                    both.create_task(self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
