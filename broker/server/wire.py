"""What aiohttp's server lacks for this door: the verb LIST, error bodies that repeat nothing, and a limit of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE, RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from broker.server.errors import Refusal
from broker.server.reply import refused
from broker.server.settings import ServerSettings

_log = structlog.get_logger("broker.server")
_LIST = b"LIST "
_STAND_IN = b"GET "
_LINE = b"\r\n"
_END = b"\r\n\r\n"


class ListParser:
    """aiohttp's parser, given the verb LIST, which llhttp refuses: at the start of a message it is parsed as GET and named again.

    A message starts where the body of the one before has ended. Only there the bytes are looked at, so that no body can be taken
    for a request; therefore the parser gets the bytes up to the end of a head, or of a body of known length, and then what follows.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._left = b""
        """What the parser has not been given yet."""
        self._in_head = False
        self._seen = b""
        """The last bytes of the head that were given."""
        self._whole = False
        """Whether the piece that was given last ended with a head."""
        self._waiting = 0
        """Messages that nobody took yet."""
        self._listing = False
        self._body: StreamReader | None = None
        self._body_left: int | None = None
        """How much of the body was not given yet; None where that is not known."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def message_consumed(self) -> None:
        """As aiohttp's own: a message was taken."""
        self._waiting -= 1
        self._parser.message_consumed()

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        """As aiohttp's own. A message that was asked for with LIST says so."""
        self._left += data
        found: list[tuple[Any, StreamReader]] = []
        while True:
            inside, piece = self._inside_a_body(), self._next()
            messages, upgraded, tail = self._parser.feed_data(piece)
            if messages:
                found += self._named(messages)
                self._waiting += len(messages)
            if upgraded:
                tail, self._left = tail + self._left, b""
            if upgraded or not self._left or not (piece or messages or inside != self._inside_a_body()):
                return found, upgraded, tail

    def _next(self) -> bytes:
        """What the parser may be given now; empty where it has to wait."""
        if self._waiting >= MAX_MSG_QUEUE_SIZE:
            # aiohttp stops reading then, and asks with nothing new once they are fewer.
            return b""
        if self._inside_a_body():
            piece = self._cut(len(self._left) if self._body_left is None else self._body_left)
            self._body_left = None if self._body_left is None else self._body_left - len(piece)
            return piece
        if not self._in_head and not self._begins():
            return b""
        end = (self._seen + self._left).find(_END)
        self._in_head, self._whole = end < 0, end >= 0
        piece = self._cut(len(self._left) if end < 0 else end + len(_END) - len(self._seen))
        self._seen = (self._seen + piece)[1 - len(_END) :] if end < 0 else b""
        return piece

    def _inside_a_body(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _begins(self) -> bool:
        """Whether a message begins with what is left; LIST is replaced there. Empty lines before it mean nothing (RFC 9112 section 2.2)."""
        if self._body_left is not None or self._body is None:
            while self._left.startswith(_LINE):
                self._left = self._left[len(_LINE) :]
        if self._left.startswith(_LIST):
            self._left = _STAND_IN + self._left[len(_LIST) :]
            self._listing = True
            return True
        return not _LIST.startswith(self._left) and self._left != _LINE[:1]

    def _cut(self, length: int) -> bytes:
        piece, self._left = self._left[:length], self._left[length:]
        return piece

    def _named(self, messages: Sequence[tuple[Any, StreamReader]]) -> Sequence[tuple[Any, StreamReader]]:
        (first, _), (last, self._body) = messages[0], messages[-1]
        # Where a head's end was not seen, what follows it may have been given too.
        known = self._whole and not last.chunked
        self._body_left = int(last.headers.get("Content-Length", 0)) if known else None
        self._in_head, self._whole, self._seen = False, False, b""
        if not self._listing:
            return messages
        self._listing = False
        renamed: RawRequestMessage = first._replace(method="LIST")
        return [(renamed, messages[0][1]), *messages[1:]]


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def __init__(self, manager: Door, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._parser = ListParser(self._parser)  # type: ignore[assignment]  # it stands in for it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Closes at once what is one connection too many."""
        super().connection_made(transport)
        if isinstance(self._manager, Door) and self._manager.is_full():
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 - aiohttp's signature
        message: str | None = None,  # noqa: ARG002 - the same
    ) -> StreamResponse:
        """What is not HTTP gets an error body of the usual shape. aiohttp's own would repeat, and log, parts of the request."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was begun already")
        answer = refused(Refusal(status, ("the request is not valid HTTP, or its head is too long",)))
        answer.force_close()
        return answer

    def log_exception(self, *_args: Any, **details: Any) -> None:
        """Logs the kind of an error, where aiohttp's own would log its text and variables."""
        _log.error("a connection failed", error=type(details.get("exc_info")).__name__)


class Door(web.Server):
    """aiohttp's low-level server with these connections."""

    def __init__(self, handler: Any, settings: ServerSettings) -> None:
        super().__init__(handler)
        self._settings = settings

    def is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self._connections) > self._settings.max_connections

    def __call__(self) -> RequestHandler:
        """A handler for a new connection."""
        settings = self._settings
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=settings.keepalive_s,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            lingering_time=2.0,
            auto_decompress=False,
        )
