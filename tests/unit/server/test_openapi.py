"""The OpenAPI document says what the router does."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from broker.api.database import ConnectionWrite, RoleWrite
from broker.engines.protocol import Fields
from broker.engines.registry import Registry
from broker.server.app import make_router
from broker.server.openapi import document
from broker.server.router import ANY_STATUS, Access, Route
from broker_postgresql.settings import ConnectionSettings
from broker_postgresql.terms import RoleOptions

ROUTES = make_router().routes
METHODS = {"read": "get", "list": "get", "update": "post", "delete": "delete"}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return document(ROUTES, Registry.installed().fields())


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
    for found in (whole, document([route for route in ROUTES if route.access is Access.OPEN], Registry.installed().fields())):
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


@pytest.mark.parametrize(("written", "read"), [(ConnectionWrite, ConnectionSettings), (RoleWrite, RoleOptions)])
def test_fields_of_the_installed_engine_are_in_it(
    whole: dict[str, Any], written: type[BaseModel], read: type[BaseModel]
) -> None:
    """What the PostgreSQL engine reads of a connection and of a role stands beside the broker's own fields, described, and no more."""
    shown = whole["components"]["schemas"][written.__name__]["properties"]
    assert set(shown) == written.model_fields.keys() | read.model_fields.keys()
    for name, field in read.model_fields.items():
        assert shown[name]["description"] == f"postgresql-database-plugin: {field.description}"
        assert {"type", "anyOf", "enum"} & set(shown[name]), name


def test_engines_do_not_stand_in_for_each_other() -> None:
    """A field of two engines is shown as each takes it, and no engine changes what the broker reads itself."""
    engines = {
        "a-plugin": Fields(connection={"port": {"type": "integer", "description": "A port."}, "plugin_name": {"type": "null"}}),
        "b-plugin": Fields(connection={"port": {"type": "string"}}, role={"colour": {"type": "string"}}),
    }
    schemas = document(ROUTES, engines)["components"]["schemas"]
    connection = schemas["ConnectionWrite"]["properties"]
    assert connection["port"] == {
        "anyOf": [{"type": "integer", "description": "a-plugin: A port."}, {"type": "string", "description": "b-plugin"}]
    }
    assert connection["plugin_name"]["type"] == "string"
    assert "colour" in schemas["RoleWrite"]["properties"]
    assert "colour" not in connection
