"""Which operation a request asks for, and who carries it out.

A pattern is a path without `/v1/` that may end in `{name}` (one segment) or `{name*}` (all that follows). Handlers are two
lines: decode, call. They are declared in tables by a decorator, one table for each module of `broker.server.routes`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from typing import TypedDict, TypeVar, Unpack

import orjson
from msgspec import Struct, field
from pydantic import BaseModel

from broker.api.envelope import ignored_warning, replaced_warning
from broker.api.fields import Wire, decode, name
from broker.errors import NotFound, UnsupportedOperation, UnsupportedPath
from broker.identity.gate import Passage
from broker.identity.tokens import Grant
from broker.server.mounts import mount_of
from broker.server.services import Services

Request = TypeVar("Request", bound=Wire)
ANY_STATUS = 0
"""Whatever status the caller asked for."""


class Access(Enum):
    """Who may come, and who puts it on record."""

    TOKEN = auto()
    """Whoever the policies let in; the gate records."""
    ISSUE = auto()
    """The same, but the issuer records."""
    OPTIONAL = auto()
    """Anybody, who sees more with a token."""
    OPEN = auto()
    """Anybody, at any time, off the record: health and the like. Not counted as in flight."""


class Reply(Struct, frozen=True, kw_only=True):
    """What a handler answers. Without content it is 204 (or `status`) and an empty body."""

    data: Mapping[str, object] | None = None
    lease_id: str = ""
    renewable: bool = False
    lease_duration_s: int = 0
    grant: Grant | None = None
    warnings: Sequence[str] = ()
    beside: Mapping[str, object] = field(default_factory=dict)
    """Keys of `data` that stand at the top level too, for older clients."""
    status: int = 0
    """0: 200, or 204 where there is no content."""
    document: bytes = b""
    """A whole body that stands alone, without the envelope."""
    media: str = "application/json"
    """The document's media type."""

    @property
    def has_content(self) -> bool:
        """Whether there is anything to say besides the status."""
        return bool(self.data is not None or self.warnings or self.lease_id or self.grant or self.document)


class Call(Struct, kw_only=True):
    """One operation under way. `params` come from the path, `data` from body or query."""

    services: Services
    passage: Passage | None
    path: str
    params: Mapping[str, str]
    data: Mapping[str, object]
    idempotency_key: str = ""
    accept: str = ""
    """The header of that name."""
    warnings: list[str] = field(default_factory=list)
    """What the caller shall hear besides the handler's own warnings."""

    @property
    def name(self) -> str:
        """The name at the end of the path. Raises `InvalidRequest` for what is none."""
        return name(self.params["name"], "name")

    @property
    def caller(self) -> Passage:
        """Who asks. Only for operations that need a token."""
        if self.passage is None:
            raise TypeError("this operation was let in without a token")
        return self.passage

    def decode(self, model: type[Request]) -> Request:
        """The request's fields. What the path gives wins over the body. Raises `InvalidRequest`."""
        fields = {key: value for key, value in self.data.items() if key not in self.params}
        return self._decoded(model, fields, [key for key in self.data if key in self.params])

    def decode_with_path(self, model: type[Request]) -> Request:
        """The same, but the body wins over the path, as Vault has it for lease ids."""
        return self._decoded(model, {**self.params, **self.data}, [])

    def take_nothing(self) -> None:
        """Warns of every field that was sent, for an operation that has none."""
        self._warn([key for key in self.data if key not in self.params], [key for key in self.data if key in self.params])

    def _decoded(self, model: type[Request], fields: Mapping[str, object], replaced: Sequence[str]) -> Request:
        request = decode(model, fields)
        if not model.keeps_unknown:
            self._warn(request.unknown(), replaced)
        return request

    def _warn(self, unknown: Sequence[str], replaced: Sequence[str]) -> None:
        if unknown:
            self.warnings.append(ignored_warning(unknown))
        if replaced:
            self.warnings.append(replaced_warning(replaced))


Handler = Callable[[Call], Awaitable[Reply]]
Exists = Callable[[Services, str], bool]


class Route(Struct, frozen=True, kw_only=True):
    """One operation at one pattern. `exists` tells an update from a creation, where that matters."""

    operation: str
    pattern: str
    handler: Handler
    access: Access = Access.TOKEN
    exists: Exists | None = None
    takes: type[Wire] | None = None
    """What its handler decodes: the body, or the query where there is none."""
    gives: type[BaseModel] | None = None
    """What stands under `data` of its answer (or under `auth`, for `Auth`), or alone where there is no envelope."""
    statuses: Sequence[int] = ()
    """What it answers with when all went well; empty: 200 with content, 204 without."""
    also: str = ""
    """A media type besides JSON in which it may answer."""

    @property
    def label(self) -> str:
        """What metrics call it: one of few values, whatever is asked."""
        return f"{self.operation} {self.pattern}"


class Declared(TypedDict, total=False):
    """What may be said of a route besides where it is; see `Route`."""

    access: Access
    exists: Exists | None
    takes: type[Wire] | None
    gives: type[BaseModel] | None
    statuses: Sequence[int]
    also: str


class Table(Struct, frozen=True):
    """Operations that were declared together."""

    routes: list[Route] = field(default_factory=list)

    def add(self, operation: str, pattern: str, **declared: Unpack[Declared]) -> Callable[[Handler], Handler]:
        """Declares the decorated handler for `operation` (read, list, update, delete) at `pattern`."""

        def declare(handler: Handler) -> Handler:
            self.routes.append(Route(operation=operation, pattern=pattern, handler=handler, **declared))
            return handler

        return declare


async def _no_path(call: Call) -> Reply:
    if mount_of(call.path) is None:
        raise NotFound(f'no handler for route "{call.path}". route entry not found.')
    raise UnsupportedPath


async def _no_operation(_call: Call) -> Reply:
    raise UnsupportedOperation


_NO_PATH = Route(operation="unknown", pattern="unknown", handler=_no_path)
_NO_OPERATION = Route(operation="unsupported", pattern="unsupported", handler=_no_operation)
# Fixed handlers of Vault answer a wrong verb before they look for a token.
_NO_OPERATION_OPEN = Route(operation="unsupported", pattern="unsupported", handler=_no_operation, access=Access.OPEN)


def _help(routes: Mapping[str, Route]) -> Route:
    """Says what can be done at a path, to whoever may come there; nothing of it is done."""
    text = "\n".join(f"{operation}: {inspect.getdoc(route.handler)}" for operation, route in routes.items())
    told = {"help": text, "see_also": None}

    async def tell(_call: Call) -> Reply:
        return Reply(data=told, document=orjson.dumps(told))

    first = next(iter(routes.values()))
    access = Access.TOKEN if first.access is Access.ISSUE else first.access
    return Route(operation="help", pattern=first.pattern, handler=tell, access=access)


class Router:
    """Finds routes. What is not there is a route too, whose handler refuses, so that the gate sees it like any other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.routes = tuple(route for table in tables for route in table.routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._named: dict[str, tuple[str, dict[str, Route]]] = {}
        self._tails: dict[str, tuple[str, dict[str, Route]]] = {}
        for route in self.routes:
            self._enter(route)

    def find(self, operation: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route for `operation` at `path`, and what the pattern's placeholder stands for."""
        routes, params = self._at(path)
        route = routes.get(operation)
        if operation == "help" and routes:
            return _help(routes), params
        if route is not None:
            return route, params
        is_open = any(known.access is Access.OPEN for known in routes.values())
        if not routes or (operation == "list" and not is_open):
            # To Vault the path of a list ends in a slash. So what has none is not there, which its clients read as an empty list.
            return _NO_PATH, {}
        return (_NO_OPERATION_OPEN if is_open else _NO_OPERATION), {}

    def _enter(self, route: Route) -> None:
        head, brace, placeholder = route.pattern.partition("/{")
        placeholder = placeholder.removesuffix("}")
        if not brace:
            routes = self._exact.setdefault(head, {})
        elif placeholder.endswith("*"):
            routes = self._tails.setdefault(head, (placeholder.removesuffix("*"), {}))[1]
        else:
            routes = self._named.setdefault(head, (placeholder, {}))[1]
        routes[route.operation] = route

    def _at(self, path: str) -> tuple[Mapping[str, Route], Mapping[str, str]]:
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        head, _, last = path.rpartition("/")
        named = self._named.get(head)
        if named is not None and last:
            return named[1], {named[0]: last}
        while head:
            tail = self._tails.get(head)
            if tail is not None:
                rest = path[len(head) + 1 :]
                return (tail[1], {tail[0]: rest}) if rest else ({}, {})
            head = head.rpartition("/")[0]
        return {}, {}
