"""The OpenAPI document says what the router does."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from broker.server.app import make_router
from broker.server.openapi import document
from broker.server.router import ANY_STATUS, Access, Route

ROUTES = make_router().routes
METHODS = {"read": "get", "list": "get", "update": "post", "delete": "delete"}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return document(ROUTES)


def operations(of: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): found for path, methods in of["paths"].items() for method, found in methods.items()}


def decoded_by(route: Route) -> set[str]:
    """The names of the models that a handler decodes."""
    source = ast.parse(textwrap.dedent(inspect.getsource(route.handler)))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    names = {call: call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "") for call in calls}
    return {call.args[0].id for call, name in names.items() if name.startswith("decode") and isinstance(call.args[0], ast.Name)}


def test_it_is_valid(whole: dict[str, Any]) -> None:
    """By the schema of OpenAPI 3.1 and its rules beyond the schema; so is the part that a caller without a token sees."""
    for found in (whole, document([route for route in ROUTES if route.access is Access.OPEN])):
        assert [error.message for error in OpenAPIV31SpecValidator(found).iter_errors()] == []


def test_each_route_is_in_it_and_nothing_else(whole: dict[str, Any]) -> None:
    """As many operations as routes, each at its path under its method."""
    expected = [(METHODS[route.operation], "/" + route.pattern.replace("*}", "}")) for route in ROUTES]
    assert len(expected) == len(set(expected)), "two operations would stand at one place of the document"
    assert set(operations(whole)) == set(expected)
    ids = [operation["operationId"] for operation in operations(whole).values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.label)
def test_handlers_decode_what_they_declare(route: Route) -> None:
    """The model in the document is the one that reads the request."""
    assert decoded_by(route) == ({route.takes.__name__} if route.takes else set())


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.label)
def test_each_operation_is_described(route: Route, whole: dict[str, Any]) -> None:
    """A summary in a sentence, a description of each parameter, its access, and at least one good and one bad answer."""
    operation = operations(whole)[METHODS[route.operation], "/" + route.pattern.replace("*}", "}")]
    assert operation["summary"].endswith(".")
    assert all(parameter["description"].endswith(".") for parameter in operation.get("parameters", ()))
    assert ({} in operation["security"]) == (route.access is Access.OPTIONAL)
    assert (operation["security"] == []) == (route.access is Access.OPEN)
    assert {"200", "202", "204"} & set(operation["responses"])
    assert "400" in operation["responses"]
    assert ("default" in operation["responses"]) == (ANY_STATUS in route.statuses)


def test_every_schema_is_used(whole: dict[str, Any]) -> None:
    """Models that only a query reads apart: their fields stand among the parameters."""
    text = str(whole)
    queried = {route.takes.__name__ for route in ROUTES if route.takes and route.operation != "update"}
    for name in set(whole["components"]["schemas"]) - queried:
        assert f"#/components/schemas/{name}'" in text, name
