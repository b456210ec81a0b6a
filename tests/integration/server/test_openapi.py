"""The OpenAPI document as clients get it, and thousands of requests made from it, with answers held against it.

`BROKER_HOSTILE_REQUESTS` asks for more than the usual 3,000 requests, `BROKER_HOSTILE_SEED` for others.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

COUNT = int(os.environ.get("BROKER_HOSTILE_REQUESTS", "3000"))
SEED = int(os.environ.get("BROKER_HOSTILE_SEED", "11"))
PATH = "sys/internal/specs/openapi"
AT_ONCE = 25
EMPTY = {202, 204, 304}
"""Where content may be missing although it is declared: nothing to warn of, or a status asked for that HTTP sends without."""
ODD_TEXTS = (
    *("", " ", "'", '"', "\\", "a'b\"c", "{{name}}", "{{", "%", "%00", "$1", ";--", "\x00", "a\x00b", "\n", "é", "漢字", "🔑"),
    *(
        "\u202e",
        "..",
        "a/b",
        "-",
        "a" * 300,
        "a" * 5_000,
        "9" * 40,
        "null",
        "[]",
        "=",
        ",,,",
        "*",
        "'; DROP ROLE x; --",
        "\ud800",
    ),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, *ODD_TEXTS),
    *([], {}, [[]], [None], ["a", 1, None], {"a": {"b": [1]}}, {"": ""}, {"\x00": "\x00"}, ["x"] * 2_000, {"a\ud800": 1}),
)


async def fetch(broker: Any, token: str | None = None) -> dict[str, Any]:
    answer = await broker("GET", PATH, token=token)
    assert answer.status == 200
    return answer.body


def operations(document: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, found) for path, methods in document["paths"].items() for method, found in methods.items()]


async def test_the_document_has_no_envelope(broker: Any) -> None:
    """It stands alone, as Vault's, and is valid OpenAPI 3.1."""
    document = await fetch(broker)
    assert document["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_the_document_without_a_token(broker: Any) -> None:
    """It is there for anybody, and names only what anybody may ask; a token that is not one is refused, as everywhere."""
    seen = operations(await fetch(broker, token=""))
    assert {path for _, path, _ in seen} >= {"/sys/health", "/sys/seal-status", f"/{PATH}"}
    assert all(operation["security"] == [] or {} in operation["security"] for _, _, operation in seen)
    assert (await broker("GET", PATH, token="s.nobody")).status == 403


async def test_the_document_has_the_fields_of_the_engines(broker: Any) -> None:
    """What an installed plugin takes stands in it."""
    schemas = (await fetch(broker))["components"]["schemas"]
    assert "connection_url" in schemas["ConnectionWrite"]["properties"]
    assert "colour" in schemas["RoleWrite"]["properties"]


async def test_the_document_with_any_token(broker: Any) -> None:
    """It is whole, whatever the token's policies are, as the list of mounts is."""
    token = await broker.new_token(policies=["none"], no_default_policy=True)
    document = await fetch(broker, token)
    assert document == await fetch(broker)
    assert len(operations(document)) > 40


async def test_reading_the_document_is_on_record_without_it(broker: Any) -> None:
    """Who read it is in the audit log; its text is not, which says nothing of this broker."""
    before = broker.audit_path.stat().st_size
    await fetch(broker)
    entry = broker.audit()[-1]
    assert (entry["type"], entry["request"]["path"]) == ("response", PATH)
    assert broker.audit_path.stat().st_size - before < 4_096


@dataclass
class Request:
    """One request, and the operation of the document that it is one of."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    operation: Mapping[str, Any]
    token: str | None = None


@dataclass
class Known:
    """Values that lead somewhere, by the name of the field; tokens that may be used up."""

    values: dict[str, list[Any]]
    spare: list[str] = field(default_factory=list)


class Maker:
    """Makes requests from a document and a seed: most values fit their schema, some are just beyond it, some are anything."""

    def __init__(self, document: Mapping[str, Any], seed: int, known: Known) -> None:
        self._schemas: Mapping[str, Mapping[str, Any]] = document["components"]["schemas"]
        self._operations = operations(document)
        self._dice = random.Random(seed)
        self._known = known

    def requests(self, count: int) -> Iterator[Request]:
        """Every operation in turn."""
        for number in range(count):
            yield self._request(*self._operations[number % len(self._operations)])

    def _request(self, method: str, path: str, operation: Mapping[str, Any]) -> Request:
        query: list[str] = []
        headers: dict[str, str] = {}
        fault = self._dice.choice([0.0, 0.1, 0.5])
        for parameter in operation.get("parameters", ()):
            name, place = parameter["name"], parameter["in"]
            if not parameter.get("required") and self._dice.random() < 0.6:
                continue
            key = f"{method} {path.split('/')[2]}" if name == "name" else name
            value = self._text(self._value(parameter["schema"], key, fault))
            if place == "path":
                path = path.replace(f"{{{name}}}", quote(value, safe="/", errors="surrogatepass"))
            elif place == "query":
                query.append(f"{name}={quote(value, safe='', errors='surrogatepass')}")
            else:
                headers[name] = value.encode("latin-1", "replace").decode("latin-1").translate({0: "", 10: "", 13: ""})
        sent = f"{path[1:]}?{'&'.join(query)}" if query else path[1:]
        of_itself = method == "post" and path.endswith("-self")
        return Request(
            method.upper(), sent, self._body(operation, fault), headers, operation, self._spare() if of_itself else None
        )

    def _spare(self) -> str:
        return self._known.spare.pop() if self._known.spare else "s.nobody"

    def _body(self, operation: Mapping[str, Any], fault: float) -> bytes:
        content = operation.get("requestBody", {}).get("content")
        if content is None:
            return b""
        return json.dumps(self._value(content["application/json"]["schema"], "", fault)).encode()

    def _value(self, schema: Mapping[str, Any], name: str, fault: float) -> Any:
        """A value for a schema, or with the probability `fault` one that is none."""
        dice = self._dice
        schema = self._schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "anyOf" in schema:
            return self._value(dice.choice(schema["anyOf"]), name, fault)
        if dice.random() < fault:
            return dice.choice([*self._beyond(schema), dice.choice(ODD)])
        if name in self._known.values and dice.random() < 0.8:
            return dice.choice(self._known.values[name])
        kind = schema.get("type", "string")
        if kind == "object":
            return self._object(schema, fault)
        if kind == "array":
            return [self._value(schema["items"], name, fault) for _ in range(dice.randrange(3))]
        return self._scalar(kind, schema)

    def _scalar(self, kind: str, schema: Mapping[str, Any]) -> Any:
        if kind == "boolean":
            return self._dice.choice([True, False])
        if kind == "integer":
            return self._dice.randrange(schema.get("minimum", 0), 600)
        return self._dice.choice([*schema.get("enum", ()), *map(str, schema.get("examples", ())), "other", "x", "1"])

    def _object(self, schema: Mapping[str, Any], fault: float) -> dict[str, Any]:
        dice = self._dice
        fields = {
            name: self._value(inner, name, fault)
            for name, inner in schema.get("properties", {}).items()
            if dice.random() < (0.9 if name in self._known.values else 0.2)
        }
        for _ in range(dice.choice([0, 0, 0, 1])):
            fields[dice.choice(ODD_TEXTS)] = dice.choice(ODD)
        return fields

    def _beyond(self, schema: Mapping[str, Any]) -> list[Any]:
        """Values that miss a schema by one."""
        beyond: list[Any] = []
        for word, value in schema.items():
            if word == "maxLength":
                beyond.append("a" * (value + 1))
            elif word == "minimum":
                beyond.append(value - 1)
            elif word == "maximum":
                beyond.append(value + 1)
            elif word == "maxItems":
                beyond.append(["a"] * (value + 1))
            elif word in ("pattern", "enum"):
                beyond.append("-no-")
        return beyond

    def _text(self, value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)


class Judge:
    """Holds answers against the document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._components = document["components"]
        self.good: Counter[str] = Counter()
        self.bad: Counter[int] = Counter()
        self.wrong: list[str] = []

    def look_at(self, request: Request, answer: Any) -> None:
        """Notes what is not as the document says."""
        said = f"{request.method} {request.path[:200]} {request.body[:300]!r}: {answer.status} {answer.raw[:300]!r}"
        responses = request.operation["responses"]
        response = responses.get(str(answer.status), responses.get("default"))
        if response is None or (answer.status >= 500 and not self._chosen(request)):
            self.wrong.append(f"undeclared: {said}")
            return
        if answer.status < 300:
            self.good[request.operation["operationId"]] += 1
        else:
            self.bad[answer.status] += 1
        mistakes = self._mistakes(response, answer)
        if mistakes or b"Traceback" in answer.raw:
            self.wrong.append(f"{mistakes}: {said}")

    def _chosen(self, request: Request) -> bool:
        """Whether the caller asked for the status."""
        return "activecode=" in request.path or "maxoverdue=" in request.path

    def _mistakes(self, response: Mapping[str, Any], answer: Any) -> Sequence[str]:
        if "$ref" in response:
            response = self._components["responses"][response["$ref"].rpartition("/")[2]]
        kind = answer.headers["Content-Type"].partition(";")[0]
        if kind != "application/json":
            return [] if kind in response.get("content", {}) and answer.raw.decode() else [f"neither JSON nor declared: {kind}"]
        if not answer.raw:
            return ["empty"] if "content" in response and answer.status not in EMPTY else []
        if "content" not in response:
            return ["not empty"]
        schema = json.dumps(response["content"]["application/json"]["schema"])
        return [error.message for error in self._validator(schema).iter_errors(answer.body)]

    @cache  # noqa: B019 - it lives as long as the test
    def _validator(self, schema: str) -> Draft202012Validator:
        return Draft202012Validator({**json.loads(schema), "components": self._components})


@pytest.mark.timeout(max(900, COUNT // 20))
async def test_requests_made_from_the_document(broker: Any) -> None:
    """Every answer is declared and fits its schema, none is a 5xx, each operation succeeds at least once; the broker goes on."""
    document = await fetch(broker)
    known = Known(
        {
            "get config": ["pg"],
            "post config": ["spare"],
            "delete config": ["spare"],
            "post reset": ["pg"],
            "get roles": ["app"],
            "post roles": ["spare"],
            "delete roles": ["spare"],
            "get creds": ["app"],
            "path": ["database", "sys"],
            "prefix": ["database/creds", "database/creds/spare"],
            "db_name": ["pg"],
            "creation_statements": ["make"],
            "plugin_name": ["memory-database-plugin"],
            "type": ["irrevocable", "service"],
            "credential_type": ["password"],
            "policies": [["default"], ["root"]],
            "id": [""],
            "list": ["true"],
        }
    )
    maker, judge = Maker(document, SEED, known), Judge(document)
    requests = maker.requests(COUNT)
    for _ in range(0, COUNT, AT_ONCE):
        issued = await broker("GET", "database/creds/app")
        made = (await broker("POST", "auth/token/create", {"ttl": "1h"})).body["auth"]
        known.values |= {"lease_id": [issued.body["lease_id"]], "token": [made["client_token"]], "accessor": [made["accessor"]]}
        known.spare += [await broker.new_token(ttl="1h") for _ in range(2)]
        batch = [request for _, request in zip(range(AT_ONCE), requests, strict=False)]
        answers = await asyncio.gather(
            *(
                broker(request.method, request.path, request.body, headers=request.headers, token=request.token)
                for request in batch
            )
        )
        for request, answer in zip(batch, answers, strict=True):
            judge.look_at(request, answer)
    assert judge.wrong == [], judge.wrong[:5]
    assert {operation["operationId"] for _, _, operation in operations(document)} - set(judge.good) == set()
    assert {400, 403, 404} <= set(judge.bad)
    assert (await broker("GET", "sys/health")).status == 200
