"""The way of one request: what it asks, whether it may, do it, put the answer on record, give it.

Order matters: nothing is done before the gate let it pass (its request entry is durable then), and nothing is answered before its
response entry is. An issue is the exception in form alone: the issuer records both entries itself.
"""

from __future__ import annotations

import structlog
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from msgspec import Struct
from msgspec.structs import replace

from broker.deadline import Deadlines
from broker.errors import Unavailable, UnsupportedOperation
from broker.identity.gate import Incoming
from broker.ids import RequestIds
from broker.server import incoming, reply
from broker.server.errors import BUG, Refusal, log_bug, refusal
from broker.server.limits import InFlight, read_body
from broker.server.mounts import mount_of
from broker.server.router import Access, Call, Reply, Route, Router
from broker.server.services import Services

_UNMATCHED = "unmatched"
_BARE_PATHS = ("list", "help")
"""Operations whose paths may end in a slash that means nothing."""
_RECORDS_S = 30
"""What a request may take besides its handler: for its token, and for the audit log."""


class _Trace(Struct):
    """What is known of a request so far, for whoever answers when it fails."""

    request_id: str
    label: str = _UNMATCHED


class _Asked(Struct, frozen=True):
    """What a request asks for, decoded."""

    request: Incoming
    route: Route
    call: Call


class Pipeline:
    """Answers requests. Never raises but for cancellation."""

    def __init__(self, services: Services, router: Router) -> None:
        self._services = services
        self._router = router
        self._settings = services.settings
        self._in_flight = InFlight(services.settings.max_in_flight)
        self._gate = services.gate
        self._deadlines = Deadlines()
        self._request_ids = RequestIds()
        self._count = services.metrics.requests.count

    async def __call__(self, request: BaseRequest) -> Response:
        """The answer, whatever happens."""
        trace = _Trace(self._request_ids.next())
        structlog.contextvars.bind_contextvars(request_id=trace.request_id)
        try:
            answer = await self._answered(request, trace)
        except TimeoutError:
            answer = reply.refused(Refusal(503, ("the audit log or the store did not answer in time",), 5))
        except Exception as error:  # noqa: BLE001 - the last place that can turn it into an answer
            found = refusal(error)
            if found.status == BUG:
                log_bug(error)
            answer = reply.refused(found)
        self._count(trace.label, str(answer.status))
        return answer

    async def _answered(self, request: BaseRequest, trace: _Trace) -> Response:
        path = incoming.path_of(request)
        query = incoming.query_of(request)
        operation = incoming.operation_of(request, path, query)
        if incoming.asks_for_help(query):
            operation = "help"
        route, params = self._router.find(operation, path.rstrip("/") if operation in _BARE_PATHS else path)
        trace.label = route.label
        if route.access is Access.ISSUE and request.method == "HEAD":
            # It would make a user whose password nobody receives.
            raise UnsupportedOperation
        call = Call(services=self._services, passage=None, path=path, params=params, data=query)
        if route.access is Access.OPEN:
            return reply.bare(await route.handler(call))
        with self._in_flight:
            incoming.check_headers(request)
            # Nobody unknown holds a place here, or memory, by a body that comes slowly: they are turned away without it.
            if operation == "update" and (
                route.access is Access.OPTIONAL or await self._gate.knows(incoming.token_of(request))
            ):
                body = await read_body(request, self._settings)
                call.data = incoming.data_of(body, request.content_type)
            asked = self._asked(request, trace, operation, route, call)
            with self._deadlines.within(self._settings.request_timeout_s + _RECORDS_S):
                return await self._passed(asked)

    def _asked(self, request: BaseRequest, trace: _Trace, operation: str, route: Route, call: Call) -> _Asked:
        call.idempotency_key = request.headers.get("Idempotency-Key", "")
        call.accept = request.headers.get("Accept", "")
        if route.exists is not None and not route.exists(self._services, call.params.get("name", "")):
            operation = "create"
        path = call.path
        if operation == "list" and not path.endswith("/"):
            path += "/"
        peer = request.transport.get_extra_info("peername") if request.transport else None
        address, port = peer[:2] if isinstance(peer, tuple) else ("", 0)
        request_asked = Incoming(
            id=trace.request_id,
            operation=operation,
            path=path,
            mount=mount_of(path),
            data=call.data,
            token=incoming.token_of(request),
            remote_address=address,
            remote_port=port,
        )
        return _Asked(request_asked, route, call)

    async def _passed(self, asked: _Asked) -> Response:
        request, route, call = asked.request, asked.route, asked.call
        if route.access is Access.OPTIONAL and request.token is None:
            return reply.enveloped(await route.handler(call), request.id, request.mount)
        if route.access is Access.ISSUE:
            call.passage = passage = await self._gate.admit_issue(request)
        else:
            call.passage = passage = await self._gate.admit(request)
        done = await self._done(route, call)
        if isinstance(done, Exception):
            # What is unforeseen is recorded as `internal error`: its text may hold a secret.
            await self._gate.answer(passage, None, error="; ".join(refusal(done).texts) or str(done))
            raise done
        if call.warnings and done.has_content:
            # As in Vault: what has no content is not given any by a warning; hvac hands out another type then.
            done = replace(done, warnings=[*done.warnings, *call.warnings])
        if route.access is not Access.ISSUE:
            await self._gate.answer(passage, reply.audited(done, request.mount))
        return reply.enveloped(done, request.id, request.mount)

    async def _done(self, route: Route, call: Call) -> Reply | Exception:
        if route.takes is None:
            call.take_nothing()
        try:
            if route.access is Access.ISSUE:
                # The issuer has a limit of its own, which is no longer.
                return await route.handler(call)
            with self._deadlines.within(self._settings.request_timeout_s):
                return await route.handler(call)
        except TimeoutError:
            return Unavailable(f"not done within {self._settings.request_timeout_s:g} s; it may still happen", retry_after_s=5)
        except Exception as error:  # noqa: BLE001 - it is put on record, then raised
            return error
