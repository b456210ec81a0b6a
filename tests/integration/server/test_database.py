"""Connections, roles and credentials over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


async def test_a_connection_reads_back_without_its_secrets(broker: Any) -> None:
    """In the shape that clients read."""
    data = (await broker("GET", "database/config/pg")).body["data"]
    assert data["plugin_name"] == "memory-database-plugin"
    assert data["connection_details"] == {"connection_url": "memory://", "username": "admin"}
    assert data["allowed_roles"] == ["*"]
    assert (await broker("LIST", "database/config")).body["data"] == {"keys": ["pg"]}


async def test_a_connection_is_tried_with_a_user(broker: Any, database: Any) -> None:
    """What a user can't do there is a warning, where the connection is new or leads elsewhere and is verified; the user is gone."""
    fields = {"plugin_name": "memory-database-plugin", "connection_url": "memory://", "allowed_roles": "*"}
    database.closed = True
    answer = await broker("PUT", "database/config/closed", fields)
    assert answer.status == 200
    assert answer.body["warnings"] == ["check: a user was not logged in: no entry for host"]
    assert database.users == set()
    assert (await broker("PUT", "database/config/closed", {"allowed_roles": "app"})).status == 204, "as before"
    assert (await broker("PUT", "database/config/other", fields | {"verify_connection": False})).status == 204
    database.closed = False
    assert (await broker("PUT", "database/config/open", fields)).status == 204


async def test_an_update_merges(broker: Any) -> None:
    """What was not sent stays."""
    await broker("PUT", "database/config/pg", {"allowed_roles": ["app"]})
    data = (await broker("GET", "database/config/pg")).body["data"]
    assert (data["allowed_roles"], data["plugin_name"]) == (["app"], "memory-database-plugin")
    await broker("PUT", "database/roles/app", {"max_ttl": "3h"})
    role = (await broker("GET", "database/roles/app")).body["data"]
    assert (role["max_ttl"], role["default_ttl"], role["creation_statements"]) == (10_800, 3_600, ["make"])


async def test_creating_and_updating_are_told_apart(broker: Any) -> None:
    """In the audit log, as policies will need it."""
    for _ in range(2):
        await broker("PUT", "database/roles/new", {"db_name": "pg"})
    operations = [entry["request"]["operation"] for entry in broker.audit() if entry["request"]["path"] == "database/roles/new"]
    assert operations == ["create", "create", "update", "update"]


@pytest.mark.parametrize(
    ("collection", "fields"), [("roles", {"db_name": "pg"}), ("config", {"plugin_name": "memory-database-plugin"})]
)
async def test_what_is_deleted_is_gone(broker: Any, collection: str, fields: dict[str, str]) -> None:
    """204 even where there is nothing."""
    await broker("PUT", f"database/{collection}/x", fields)
    assert (await broker("DELETE", f"database/{collection}/x")).status == 204
    assert (await broker("GET", f"database/{collection}/x")).status == 404
    assert (await broker("DELETE", f"database/{collection}/x")).status == 204


async def test_an_empty_list_is_not_found(broker: Any) -> None:
    """As Vault has it."""
    await broker("DELETE", "database/roles/app")
    answer = await broker("LIST", "database/roles")
    assert (answer.status, answer.errors) == (404, [])


async def test_reset(broker: Any) -> None:
    """204, and 400 for a connection that is not there."""
    assert (await broker("POST", "database/reset/pg")).status == 204
    assert (await broker("POST", "database/reset/none")).status == 400


async def test_credentials(broker: Any, database: Any) -> None:
    """A lease in the envelope, its user in the database, both entries on record without the password."""
    body = (await broker("GET", "database/creds/app")).body
    assert body["lease_id"].startswith("database/creds/app/")
    assert (body["renewable"], body["lease_duration"]) == (True, 3_600)
    assert body["data"]["username"] in database.users
    request, response = broker.audit()[-2:]
    assert (request["type"], response["type"]) == ("request", "response")
    assert request["request"]["id"] == response["request"]["id"] == body["request_id"]
    assert response["response"]["secret"] == {"lease_id": body["lease_id"]}
    assert response["response"]["data"]["username"] == body["data"]["username"]
    assert response["response"]["data"]["password"].startswith("hmac-sha256:")


@pytest.mark.parametrize(
    ("setup", "path", "text"),
    [
        ({}, "database/creds/none", "unknown role: none"),
        ({"allowed_roles": ["other"]}, "database/creds/app", '"app" is not an allowed role'),
    ],
)
async def test_a_callers_mistake_is_400(broker: Any, setup: dict[str, Any], path: str, text: str) -> None:
    """In Vault's words; request and error on record."""
    if setup:
        await broker("PUT", "database/config/pg", setup)
    answer = await broker("GET", path)
    assert (answer.status, answer.errors) == (400, [text])
    request, response = broker.audit()[-2:]
    assert (request["type"], response["type"], response["error"]) == ("request", "response", text)


async def test_a_dead_database_is_503(broker: Any, database: Any) -> None:
    """With Retry-After, and the failure on record."""
    database.down = True
    answer = await broker("GET", "database/creds/app")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    # What was begun is being removed meanwhile, and that is on record too.
    failures = [entry.get("error") for entry in broker.audit() if entry["type"] == "response"]
    assert answer.errors[0] in failures


async def test_the_same_idempotency_key_gets_the_same_lease(broker: Any) -> None:
    """Also for two requests at once; another key, or none, gets another."""
    key = {"Idempotency-Key": "deploy-7"}
    first, second = await asyncio.gather(*(broker("GET", "database/creds/app", headers=key) for _ in range(2)))
    assert first.body["lease_id"] == second.body["lease_id"]
    assert first.body["data"] == second.body["data"]
    other = await broker("GET", "database/creds/app", headers={"Idempotency-Key": "deploy-8"})
    assert other.body["lease_id"] != first.body["lease_id"]


@pytest.mark.parametrize("key", ["k" * 257, "é" * 300])
async def test_an_over_long_idempotency_key_is_refused(broker: Any, key: str) -> None:
    """It becomes part of what is stored."""
    answer = await broker("GET", "database/creds/app", headers={"Idempotency-Key": key})
    assert answer.status == 400
    assert answer.errors[0].startswith("Idempotency-Key: ")


@pytest.mark.parametrize(("name", "key"), [("app", "k" * 257), ("no%20name", "")])
async def test_an_issue_that_is_refused_early_is_on_record(broker: Any, name: str, key: str) -> None:
    """Request and response, though the issuer never saw it."""
    before = len(broker.audit())
    answer = await broker("GET", f"database/creds/{name}", headers={"Idempotency-Key": key})
    assert answer.status == 400
    request, response = broker.audit()[before:]
    assert (request["type"], response["type"], response["error"]) == ("request", "response", answer.errors[0])
    assert request["request"] == response["request"]


async def test_help_is_about_a_path_and_issues_nothing(broker: Any, database: Any) -> None:
    """`?help=1` answers any token what the path is for, on record, and makes no user."""
    for token in (None, await broker.new_token(policies=["none"], no_default_policy=True)):
        answer = await broker("GET", "database/creds/app?help=1", token=token)
        assert (answer.status, set(answer.body)) == (200, {"help", "see_also"})
        assert "lease" in answer.body["help"]
        request, response = broker.audit()[-2:]
        assert (request["request"]["operation"], response["type"]) == ("help", "response")
    assert database.users == set()
    told = (await broker("GET", "database/roles/app?help=1")).body["help"]
    assert [line.partition(":")[0] for line in told.splitlines()] == ["update", "read", "delete"]


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("database/creds/app", "", 403),
        ("database/nonsense", "", 403),
        ("database/nonsense", None, 404),
        ("nonsense", None, 404),
        ("sys/health", "", 200),
    ],
)
async def test_help_is_for_those_who_may_come(broker: Any, path: str, token: str | None, status: int) -> None:
    """Not without a token, unless the path needs none, and not where there is nothing; refusals are on record."""
    before = len(broker.audit())
    assert (await broker("GET", f"{path}?help=1", token=token)).status == status
    assert len(broker.audit()) == before + (0 if path == "sys/health" else 2)


async def test_head_issues_nothing(broker: Any, database: Any) -> None:
    """Nobody would receive the password; of what only reads, HEAD gives the head."""
    assert (await broker("HEAD", "database/creds/app")).status == 405
    assert database.users == set()
    assert (await broker("HEAD", "database/roles/app")).status == 200


async def test_leases_per_role_are_limited(broker: Any) -> None:
    """429 that names the limit, with Retry-After."""
    await broker("PUT", "database/roles/app", {"max_leases": 1})
    assert (await broker("GET", "database/creds/app")).status == 200
    answer = await broker("GET", "database/creds/app")
    assert answer.status == 429
    assert "max_leases" in answer.errors[0]
    assert int(answer.headers["Retry-After"]) >= 1


async def test_warnings_make_a_body(broker: Any) -> None:
    """A write that has something to say is 200 with no data."""
    answer = await broker("PUT", "database/roles/app", {"misspelt": 1})
    assert answer.status == 200
    assert answer.body["data"] is None
    assert "misspelt" in answer.body["warnings"][0]


@pytest.mark.parametrize(
    ("role", "doubt"),
    [
        ({"db_name": "nowhere", "creation_statements": "make"}, "connection nowhere does not exist yet"),
        ({"db_name": "closed", "creation_statements": "make"}, "connection closed does not allow the role"),
        (
            {"db_name": "pg", "creation_statements": "make", "default_ttl": "100h", "max_ttl": "200h"},
            "default_ttl of 100h is over leases.max_ttl of 24h",
        ),
    ],
)
async def test_a_role_that_cannot_give_what_it_says_is_warned_of(broker: Any, role: dict[str, str], doubt: str) -> None:
    """When it is written, and not by the first application that asks; it is kept all the same."""
    await broker("PUT", "database/config/closed", {"plugin_name": "memory-database-plugin", "url": "memory://"})
    answer = await broker("PUT", "database/roles/doubtful", role)
    assert answer.status == 200
    assert any(doubt in warning for warning in answer.body["warnings"]), answer.body["warnings"]
    assert (await broker("GET", "database/roles/doubtful")).status == 200


async def test_a_shortened_lease_says_so(broker: Any) -> None:
    """Also where its role asked for more than anybody gets."""
    await broker("PUT", "database/roles/app", {"default_ttl": "100h", "max_ttl": "200h"})
    body = (await broker("GET", "database/creds/app")).body
    assert body["lease_duration"] == 86_400
    assert body["warnings"] == ['TTL of "100h" exceeded the effective max_ttl of "24h"; TTL value is capped accordingly']
