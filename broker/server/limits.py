"""What the door takes at most: requests at once, and bytes of a body within a time."""

from __future__ import annotations

import asyncio
from types import TracebackType

from aiohttp import ClientError, http_exceptions
from aiohttp.web_request import BaseRequest

from broker.errors import BodyTooLarge, InvalidRequest, Unavailable
from broker.server.settings import ServerSettings


class InFlight:
    """Counts the requests that are worked on; entering past the limit raises `Unavailable` at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self._most:
            raise Unavailable(f"{self.count} requests are being worked on already (max_in_flight)", retry_after_s=1)
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.count -= 1


async def read_body(request: BaseRequest, settings: ServerSettings) -> bytes:
    """The whole request body. Raises `BodyTooLarge`, and `InvalidRequest` for one that is compressed, broken off or too slow."""
    if not request.body_exists:
        return b""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await _invite(request, settings)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidRequest("a compressed request body is not supported; send it without Content-Encoding")
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _collect(request, settings.max_body_bytes)
    except TimeoutError:
        raise InvalidRequest(f"the request body did not arrive within {settings.body_timeout_s:g} s") from None
    except (ClientError, http_exceptions.HttpProcessingError, ConnectionError):
        raise InvalidRequest("the request body broke off or is not valid HTTP") from None


async def _collect(request: BaseRequest, most: int) -> bytes:
    if (request.content_length or 0) > most:
        raise BodyTooLarge
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most:
            raise BodyTooLarge
    return bytes(body)


async def _invite(request: BaseRequest, settings: ServerSettings) -> None:
    if (request.content_length or 0) <= settings.max_body_bytes:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
