"""What a server sends, looked at before the driver reads it.

The driver believes every length that it is told. A message that says it is shorter than its own head has the driver read the same bytes
for ever, or bytes that are not its own: all of the broker stands still or dies, for one server that is broken or means harm. A message or
an answer without end fills the memory until the call is given up. So both are looked for here, and a connection that breaks the rules
is cut (PostgreSQL manual, "Message Formats").
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import asyncpg

if TYPE_CHECKING:
    from broker_postgresql.session import Wire

    _Base = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

ANSWER_MAX = 64 * 1024 * 1024
"""How many bytes a server may send until it is ready for the next query; the longest answers here are some megabytes."""
MESSAGE_MAX = 1024 * 1024
"""The longest message that is no row of a table. The driver puts texts together so that the time grows with the square of their length:
an error of 50 MB stops all of the broker for four seconds, one of this length for some milliseconds."""
_HEAD = struct.Struct(">ci")
"""A letter, and the length of all that follows it, itself included, as a signed 32-bit number."""
_LENGTH = 4
_READY_FOR_QUERY = b"Z"
_ROW = b"D"


class BrokenAnswer(ConnectionError):
    """the server does not keep to the protocol."""


class Frames:
    """Follows the messages of one server through the pieces in which they come. Pure."""

    def __init__(self) -> None:
        self._head = b""
        """The beginning of a head that the next piece goes on with."""
        self._left = 0
        """How much of the message is still to come."""
        self._answer = 0

    def follow(self, data: bytes) -> None:
        """Takes the next piece. Raises `BrokenAnswer`; then no more may be read of this server."""
        data, self._head = self._head + data, b""
        position, end, answer = self._left, len(data), self._answer
        # Every row of every answer comes by here.
        while position + _HEAD.size <= end:
            letter, length = _HEAD.unpack_from(data, position)
            answer += length
            if not _LENGTH <= length <= MESSAGE_MAX or answer > ANSWER_MAX or not letter.isalnum():
                _judge(letter, length, answer)
            if letter == _READY_FOR_QUERY:
                answer = 0
            position += 1 + length
        self._head = data[position:]
        self._left, self._answer = max(0, position - end), answer


def _judge(letter: bytes, length: int, answer: int) -> None:
    if not letter.isalnum():
        # Zero above all: while such a message is incomplete, the driver takes the next piece's first byte for another letter.
        raise BrokenAnswer(f"the server broke the protocol: a message of the kind {letter!r}")
    if length < _LENGTH:
        raise BrokenAnswer(f"the server broke the protocol: a message of {length} bytes")
    if length > MESSAGE_MAX and letter != _ROW:
        raise BrokenAnswer(f"the server sent a message of {length} bytes")
    if answer > ANSWER_MAX:
        raise BrokenAnswer(f"the server answered with more than {ANSWER_MAX} bytes")


class _Inspected(asyncio.Protocol):
    """Passes on to the driver's protocol what keeps to the rules."""

    def __init__(self, driver: asyncio.Protocol, transport: asyncio.Transport | None = None) -> None:
        self.driver = driver
        self._transport = transport
        self._frames = Frames()
        self._broken: BrokenAnswer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.driver.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._broken is not None:
            return
        try:
            self._frames.follow(data)
        except BrokenAnswer as broken:
            self._broken = broken
            if self._transport is not None:
                self._transport.abort()
        else:
            self.driver.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.driver.connection_lost(self._broken or exc)

    def eof_received(self) -> bool | None:
        return self.driver.eof_received()

    def pause_writing(self) -> None:
        self.driver.pause_writing()

    def resume_writing(self) -> None:
        self.driver.resume_writing()


class _Transport:
    """A transport after the TLS handshake, to which the driver then gives its protocol."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def set_protocol(self, driver: asyncio.Protocol) -> None:
        self._transport.set_protocol(_Inspected(driver, self._transport))


class _Loop:
    """The event loop as the driver sees it while it connects: it offers no other way to stand between the network and the driver."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], *arguments: Any, **options: Any) -> Any:
        transport, protocol = await self._loop.create_connection(lambda: _inspected(factory()), *arguments, **options)
        return transport, protocol.driver if isinstance(protocol, _Inspected) else protocol

    async def start_tls(self, *arguments: Any, **options: Any) -> Any:
        transport = await self._loop.start_tls(*arguments, **options)
        return None if transport is None else _Transport(transport)


def _inspected(protocol: asyncio.Protocol) -> asyncio.Protocol:
    # What asks a server whether it speaks TLS gets one letter, no messages.
    return _Inspected(protocol) if isinstance(protocol, asyncpg.protocol.Protocol) else protocol


class _Connection(_Base):
    """The driver's connection, which goes on with the real loop: tasks are found by it."""

    def __init__(self, protocol: Any, transport: Any, _loop: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, asyncio.get_running_loop(), *rest)


async def connect(**options: Any) -> Wire:
    """`asyncpg.connect` to a host over TCP, inspected. Raises what the driver raises, `BrokenAnswer` being the cause where it was one."""
    loop: Any = _Loop(asyncio.get_running_loop())
    return await asyncpg.connect(loop=loop, connection_class=_Connection, **options)
