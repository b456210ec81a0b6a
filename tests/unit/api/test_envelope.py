"""The JSON around every answer."""

from __future__ import annotations

import json

from broker.api import auth, envelope, leases, system
from broker.api.fields import decode


def test_every_key_of_the_envelope_is_always_there() -> None:
    """Clients read the keys without asking whether they are there."""
    assert json.loads(envelope.success("id", {"data": {"a": 1}, "beside": 2})) == {
        "request_id": "id",
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": {"a": 1},
        "wrap_info": None,
        "warnings": None,
        "auth": None,
        "mount_type": "",
        "beside": 2,
    }


def test_error_bodies() -> None:
    """An empty list where there is no text, and data beside it only where there is any."""
    assert envelope.errors([]) == b'{"errors":[]}'
    assert envelope.errors(["a"], {"b": 1}) == b'{"errors":["a"],"data":{"b":1}}'


def test_multi_error_has_the_bytes_of_go() -> None:
    """Clients match on this text."""
    assert envelope.multi_error("a") == "1 error occurred:\n\t* a\n\n"
    assert envelope.multi_error("a", "b") == "2 errors occurred:\n\t* a\n\t* b\n\n"


def test_warnings_spell_lists_as_go_does() -> None:
    """Sorted, in brackets, blanks between."""
    assert envelope.ignored_warning(["b", "a"]) == "Endpoint ignored these unrecognized parameters: [a b]"
    assert envelope.replaced_warning(["name"]).endswith("captured from the endpoint's path: [name]")


def test_models_of_replies_describe_every_field() -> None:
    """The OpenAPI document has a sentence for each field of every model."""
    for module in (auth, leases, system):
        for model in vars(module).values():
            if not (isinstance(model, type) and model.__module__ == module.__name__):
                continue
            for field in model.model_json_schema().get("properties", {}).values():
                assert field.get("description", "").endswith("."), model


def test_stuck_query_reads_its_limit() -> None:
    """None for all, 10,000 unless it says so."""
    assert decode(leases.StuckQuery, {}).listed() == 10_000
    assert decode(leases.StuckQuery, {"limit": "none"}).listed() is None
    assert decode(leases.StuckQuery, {"limit": 3}).listed() == 3
