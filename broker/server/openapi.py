"""The OpenAPI 3.1 document, made from the tables of routes and the models that they name.

Nothing in it is written twice: paths, access and statuses are the router's, summaries the handlers' docstrings, schemas the models
of `broker.api`, and what engines take beside those is what their plugins say.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from broker import __version__
from broker.api import fields
from broker.api.auth import Auth
from broker.api.database import ConnectionWrite, RoleWrite
from broker.api.envelope import Envelope, Errors
from broker.api.system import Metrics, Specification
from broker.engines.protocol import Fields
from broker.server.mounts import mount_of
from broker.server.router import ANY_STATUS, Access, Route

Document = dict[str, Any]

_METHODS = {"read": "get", "list": "get", "update": "post", "delete": "delete"}
_PLACE = re.compile(r"\{(\w+)(\*?)\}")
_WORD = re.compile(r"\w+")
_REFERENCE = "#/components/schemas/{model}"
_ABOUT = """Database users that live for one lease, over the part of Vault's API that a client needs for them.

`PUT` is the same as `POST`, and the verb `LIST` the same as `GET` with `?list=true`. Numbers and truth values may be sent as text,
an empty body counts as one without fields, `null` as a field left out. An answer that has content names unknown fields in a warning.
`?help=1` at any path says what is there. A caller without a token sees here only what needs none."""
_REFUSALS = {
    400: "The request can't be carried out as it is; `errors` says why.",
    403: "The token is missing, unknown or over, or does not allow this.",
    404: "It is not there.",
    405: "This can't be done here; what only has a list answers this without `list=true`.",
    413: "The body is too large.",
    429: "A limit is reached.",
    503: "Something that is needed does not answer just now.",
}
_REFUSED_OF = {405: "list", 413: "update"}
"""Refusals that only some operations know."""
_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_LATER = {"Retry-After": {"description": "After how many seconds to ask again.", "schema": {"type": "integer", "minimum": 1}}}
_DONE = {
    ANY_STATUS: "Done, with the status that was asked for.",
    200: "Done.",
    202: "Begun; the body is empty unless there are warnings.",
    204: "Done; the body is empty.",
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Asked again with the same key, the same token gets the same lease, password included.",
    "schema": {"type": "string", "maxLength": fields.NAME_CHARS},
}
_TOKEN: list[Mapping[str, Sequence[str]]] = [{"token": []}, {"bearer": []}]
_SECURITY: dict[Access, list[Mapping[str, Sequence[str]]]] = {
    Access.TOKEN: _TOKEN,
    Access.ISSUE: _TOKEN,
    Access.OPTIONAL: [{}, *_TOKEN],
    Access.OPEN: [],
}


_ALONE = (Specification, Metrics)
"""Answers without the envelope, where there is one elsewhere."""


class _Plain(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        """Titles would say the names of the fields again."""
        return False


def document(routes: Sequence[Route], engines: Mapping[str, Fields]) -> Document:
    """The document of these routes and engines, these by the names of their plugins. Takes some tens of milliseconds."""
    schemas = _schemas(routes)
    _add(schemas, ConnectionWrite, {plugin: taken.connection for plugin, taken in engines.items()})
    _add(schemas, RoleWrite, {plugin: taken.role for plugin, taken in engines.items()})
    paths: dict[str, Document] = {}
    for route in routes:
        methods = paths.setdefault("/" + _PLACE.sub(r"{\1}", route.pattern), {})
        methods[_METHODS[route.operation]] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "broker",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/v1"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {f"Refused{status}": _refusal(status) for status in _REFUSALS},
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Vault-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _schemas(routes: Iterable[Route]) -> dict[str, Document]:
    taken = {route.takes for route in routes if route.takes is not None}
    given = {route.gives for route in routes if route.gives is not None} | {Envelope, Errors}
    models = [(model, "validation") for model in taken] + [(model, "serialization") for model in given]
    models.sort(key=lambda entry: entry[0].__name__)
    _, definitions = models_json_schema(models, ref_template=_REFERENCE, schema_generator=_Plain)  # type: ignore[arg-type]  # a list of literals
    schemas: dict[str, Document] = definitions["$defs"]
    return schemas


def _add(schemas: Mapping[str, Document], model: type[BaseModel], engines: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds what engines take to the fields of a model; the broker's own come first, as they do where it is read."""
    if model.__name__ not in schemas:
        return
    properties = schemas[model.__name__]["properties"]
    for name in sorted({name for taken in engines.values() for name in taken} - properties.keys()):
        kinds = [_of(plugin, taken[name]) for plugin, taken in engines.items() if name in taken]
        properties[name] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _of(plugin: str, field: Mapping[str, Any]) -> Document:
    return {**field, "description": f"{plugin}: {field.get('description', '')}".rstrip(": ")}


def _operation(route: Route, schemas: Mapping[str, Document]) -> Document:
    operation: Document = {
        "operationId": "-".join([route.operation, *_WORD.findall(route.pattern)]),
        "summary": (inspect.getdoc(route.handler) or "").partition("\n")[0],
        "tags": [mount.type if (mount := mount_of(route.pattern)) else "system"],
        "security": _SECURITY[route.access],
        "responses": _responses(route),
    }
    parameters = [*_places(route), *_queries(route, schemas)]
    if route.access is Access.ISSUE:
        parameters.append(_KEY)
    if parameters:
        operation["parameters"] = parameters
    if route.operation == "update" and route.takes is not None:
        content = {"application/json": {"schema": _refer(route.takes)}}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _places(route: Route) -> list[Document]:
    name = {"type": "string", "pattern": rf"^{fields.NAME.pattern}$", "maxLength": fields.NAME_CHARS}
    rest = {"type": "string", "minLength": 1}
    return [
        {
            "name": place,
            "in": "path",
            "required": True,
            "description": "All that follows; slashes may stand as they are." if tail else "A name.",
            "schema": rest if tail else name,
        }
        for place, tail in _PLACE.findall(route.pattern)
    ]


def _queries(route: Route, schemas: Mapping[str, Document]) -> list[Document]:
    if route.operation == "list":
        schema = {"type": "string", "enum": ["true"]}
        return [{"name": "list", "in": "query", "required": True, "description": "Asks for the list.", "schema": schema}]
    if route.operation == "update" or route.takes is None:
        return []
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in schemas[route.takes.__name__]["properties"].items()
    ]


def _responses(route: Route) -> Document:
    responses: Document = {str(status) if status else "default": _answer(route, status) for status in _statuses(route)}
    return responses | {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in _refused(route)}


def _statuses(route: Route) -> Sequence[int]:
    if route.statuses:
        return route.statuses
    if route.gives is not None:
        return (200,)
    # Who takes fields may have something to say to them.
    return (200, 204) if route.takes is not None else (204,)


def _refused(route: Route) -> Sequence[int]:
    if route.access is Access.OPEN:
        return (400,)
    others = {status for status, operation in _REFUSED_OF.items() if operation != route.operation}
    return [status for status in _REFUSALS if status not in others]


def _answer(route: Route, status: int) -> Document:
    if status == HTTPStatus.NO_CONTENT:
        return {"description": _DONE[status]}
    content: Document = {"application/json": {"schema": _content(route)}}
    if route.also:
        content[route.also] = {"schema": {"type": "string"}}
    return {"description": _DONE[status], "content": content}


def _content(route: Route) -> Document:
    if route.gives is not None and (route.access is Access.OPEN or route.gives in _ALONE):
        return _refer(route.gives)
    part = "auth" if route.gives is Auth else "data"
    inside = {"type": "object", "properties": {part: {"type": "null"} if route.gives is None else _refer(route.gives)}}
    return {"allOf": [_refer(Envelope), inside]}


def _refusal(status: int) -> Document:
    refusal: Document = {
        "description": _REFUSALS[status],
        "content": {"application/json": {"schema": _refer(Errors)}},
    }
    return refusal | ({"headers": _LATER} if status in _AGAIN else {})


def _refer(model: type[BaseModel]) -> Document:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
