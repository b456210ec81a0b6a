"""From the bytes of a request to what it asks for: path, operation, data, token. Vault's rules of methods and headers."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

import orjson
from aiohttp.web_request import BaseRequest

from broker.api.fields import boolean, check_shape
from broker.duration import parse_seconds
from broker.errors import InvalidRequest, NotFound, UnsupportedOperation
from broker.secret import Secret

_PREFIX = "/v1/"
_OPERATIONS = {
    "GET": "read",
    "HEAD": "read",
    "LIST": "list",
    "POST": "update",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_FORM = "application/x-www-form-urlencoded"
_FORM_FIELDS = 1_000
"""How many fields a form or a query string may have."""
_PATH_CHARS = 4_096


def path_of(request: BaseRequest) -> str:
    """The decoded path without `/v1/`. Raises `NotFound` outside of it, `InvalidRequest` for what is no plain path."""
    path = request.rel_url.path
    if not path.startswith(_PREFIX):
        raise NotFound
    path = path[len(_PREFIX) :]
    if len(path) > _PATH_CHARS or not path.isprintable():
        raise InvalidRequest(f"the path is over {_PATH_CHARS} characters long or has control characters")
    if "." in path and any(segment in (".", "..") for segment in path.split("/")):
        raise InvalidRequest("relative paths not supported")
    return path


def operation_of(request: BaseRequest, path: str, query: dict[str, object]) -> str:
    """What the method asks for. Takes `list` out of the query. Raises `UnsupportedOperation`, `InvalidRequest`."""
    operation = _OPERATIONS.get(request.method)
    if operation is None:
        raise UnsupportedOperation
    if operation == "read" and "list" in query:
        operation = "list" if boolean(query.pop("list"), "list") else operation
    if operation == "update" and path.endswith("/"):
        raise InvalidRequest("cannot write to a path ending in '/'")
    return operation


def asks_for_help(query: dict[str, object]) -> bool:
    """Whether the request is about a path rather than for it (`?help=1`); takes `help` out of the query. Raises `InvalidRequest`."""
    return "help" in query and boolean(query.pop("help"), "help")


def query_of(request: BaseRequest) -> dict[str, object]:
    """The query string as fields; a key that comes several times is a list. Raises `InvalidRequest` for too many."""
    text = request.rel_url.raw_query_string
    if not text:
        return {}
    if text.count("&") >= _FORM_FIELDS:
        raise InvalidRequest(f"the query string has too many fields; allowed are {_FORM_FIELDS}")
    found: dict[str, list[str]] = {}
    for key, value in request.rel_url.query.items():
        found.setdefault(key, []).append(value)
    return _fields(found)


def data_of(body: bytes, content_type: str) -> Mapping[str, object]:
    """The fields of a request body: a JSON object, or a form that does not look like JSON. Empty or `null`: none.

    Raises `InvalidRequest`, also for more values or levels than anybody may make the audit log hash (CVE-2025-6203).
    """
    if not body.strip():
        return {}
    if content_type == _FORM and body.lstrip()[:1] not in (b"{", b"["):
        return _form(body)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Its text names a position, never the content.
        raise InvalidRequest(f"failed to parse JSON input: {error.msg}") from None
    if data is None:
        # What `bao write -f` sends.
        return {}
    if not isinstance(data, dict):
        raise InvalidRequest("failed to parse JSON input: the body is not an object")
    check_shape(data)
    return data


def token_of(request: BaseRequest) -> Secret | None:
    """The token that the request carries; `X-Vault-Token` wins over `Authorization: Bearer`."""
    text = request.headers.get("X-Vault-Token")
    if not text:
        bearer = request.headers.get("Authorization", "")
        text = bearer.removeprefix("Bearer ").strip() if bearer.startswith("Bearer ") else ""
    return Secret(text) if text else None


def check_headers(request: BaseRequest) -> None:
    """Refuses headers that ask for what is not offered, rather than to ignore them: namespaces and wrapping."""
    headers = request.headers
    if headers.get("X-Vault-Namespace", "") not in ("", "root", "root/", "/"):
        raise NotFound("namespace not found")
    wrap = headers.get("X-Vault-Wrap-TTL")
    if wrap is None:
        return
    if wrap.startswith("-"):
        raise InvalidRequest("error parsing X-Vault-Wrap-TTL header: requested wrap ttl cannot be negative")
    if parse_seconds(wrap, field="X-Vault-Wrap-TTL"):
        raise InvalidRequest("X-Vault-Wrap-TTL: response wrapping is not supported")


def _form(body: bytes) -> Mapping[str, object]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_FORM_FIELDS)
    except ValueError:
        raise InvalidRequest(f"the form is not UTF-8, or has over {_FORM_FIELDS} fields") from None
    return _fields(fields)


def _fields(found: Mapping[str, list[str]]) -> dict[str, object]:
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}
