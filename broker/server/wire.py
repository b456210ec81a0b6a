"""What aiohttp's server lacks for this door: the verb LIST, error bodies that repeat nothing, and a limit of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from broker.server.errors import Refusal
from broker.server.reply import refused
from broker.server.settings import ServerSettings

_log = structlog.get_logger("broker.server")
_LIST = b"LIST "
_STAND_IN = b"GET "


class ListParser:
    """aiohttp's parser, given the verb LIST, which llhttp refuses: at the start of a message it is parsed as GET and named again.

    A message starts where the body of the one before has ended. Only there the bytes are looked at, so that no body can be taken
    for a request.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._held = b""
        self._in_head = False
        """Whether the last piece ended in the middle of a head: what comes next begins no message, whatever it looks like."""
        self._listing = False
        self._body: StreamReader | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        """As aiohttp's own. A message that was asked for with LIST says so."""
        data = self._held + data
        self._held = b""
        at_start = not self._in_head and (self._body is None or self._body.is_eof())
        if data and at_start:
            if data.startswith(_LIST):
                data = _STAND_IN + data[len(_LIST) :]
                self._listing = True
            elif _LIST.startswith(data):
                self._held = data
                return (), False, b""
        messages, upgraded, tail = self._parser.feed_data(data)
        self._in_head = not messages and bool(data) and (at_start or self._in_head)
        if messages:
            messages = self._named(messages)
            self._body = messages[-1][1]
        return messages, upgraded, tail

    def _named(self, messages: Sequence[tuple[Any, StreamReader]]) -> Sequence[tuple[Any, StreamReader]]:
        if not self._listing:
            return messages
        self._listing = False
        first, body = messages[0]
        renamed: RawRequestMessage = first._replace(method="LIST")
        return [(renamed, body), *messages[1:]]


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
