"""Roles and connections that are deleted: as Vault does it, with a look ahead, or with their leases."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
async def lease(broker: Any) -> dict[str, Any]:
    """The answer that issued a lease of the role `app`."""
    return dict((await broker("GET", "database/creds/app")).body)


async def _gone(broker: Any, lease: Any) -> bool:
    return (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).status == 400


@pytest.mark.parametrize("path", ["database/roles/app", "database/config/pg"])
@pytest.mark.parametrize("query", ["", "?dry_run=false", "?drain=0", "?dry_run=f&drain=F"])
async def test_leases_outlive_a_deletion_unless_told_otherwise(
    broker: Any, lease: dict[str, Any], database: Any, path: str, query: str
) -> None:
    """204 and an empty body, as Vault has it; the lease can still be looked up, and revoked."""
    answer = await broker("DELETE", path + query)
    assert (answer.status, answer.raw) == (204, b"")
    assert (await broker("GET", path)).status == 404
    assert not await _gone(broker, lease)
    assert (await broker("PUT", "sys/leases/revoke", {"lease_id": lease["lease_id"]})).status == 204
    assert database.users == set()


async def test_a_dry_run_says_what_deleting_a_role_would_do(broker: Any, lease: dict[str, Any]) -> None:
    """And does nothing; with `drain` it says what that would revoke."""
    shown = (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).body["data"]
    outlook = {
        "role": "app",
        "exists": True,
        "connection": "pg",
        "live_leases": 1,
        "leases_revoked": 0,
        "prepared_users": 0,
    }
    for query, revoked in (("dry_run=true", 0), ("dry_run=1&drain=true", 1)):
        answer = await broker("DELETE", f"database/roles/app?{query}")
        assert (answer.status, answer.body["warnings"]) == (200, None)
        data = answer.body["data"]
        assert data.pop("latest_expiry") >= shown["expire_time"]
        assert data == outlook | {"leases_revoked": revoked}
    assert (await broker("GET", "database/roles/app")).status == 200
    assert not await _gone(broker, lease)


async def test_a_dry_run_says_what_deleting_a_connection_would_do(broker: Any, lease: dict[str, Any]) -> None:
    """Which roles would be left without one, and what they hold."""
    await broker("PUT", "database/roles/idle", {"db_name": "pg", "creation_statements": "make"})
    await broker("PUT", "database/roles/elsewhere", {"db_name": "none", "creation_statements": "make"})
    shown = (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).body["data"]
    answer = await broker("DELETE", "database/config/pg?dry_run=true&drain=true")
    assert answer.status == 200
    data = answer.body["data"]
    assert data.pop("latest_expiry") >= shown["expire_time"]
    assert data == {
        "connection": "pg",
        "exists": True,
        "roles": {"app": {"live_leases": 1, "prepared_users": 0}, "idle": {"live_leases": 0, "prepared_users": 0}},
        "live_leases": 1,
        "leases_revoked": 1,
        "prepared_users": 0,
    }
    assert (await broker("GET", "database/config/pg")).status == 200
    assert not await _gone(broker, lease)


@pytest.mark.parametrize("path", ["database/roles/none", "database/config/none"])
async def test_a_dry_run_of_nothing(broker: Any, path: str) -> None:
    """Deleting what is not there is no mistake, so looking ahead is none."""
    data = (await broker("DELETE", f"{path}?dry_run=true")).body["data"]
    assert (data["exists"], data["live_leases"], data["latest_expiry"]) == (False, 0, None)


@pytest.mark.parametrize("path", ["database/roles/app", "database/config/pg"])
async def test_draining_revokes_in_the_background(
    broker: Any, lease: dict[str, Any], database: Any, eventually: Any, path: str
) -> None:
    """202 when it is durable; nobody waits for the database, and the leases go by themselves."""
    database.down = True
    answer = await broker("DELETE", f"{path}?drain=true")
    assert (answer.status, answer.raw) == (202, b"")
    assert (await broker("GET", path)).status == 404
    database.down = False

    async def gone() -> bool:
        return not database.users and await _gone(broker, lease)

    await eventually(gone)


async def test_a_database_that_never_comes_back_is_forgotten(broker: Any, lease: dict[str, Any], database: Any) -> None:
    """One request deletes its connection and takes its leases off the books; the answer says how many users stay behind."""
    database.down = True
    assert (await broker("DELETE", "database/roles/app?force=true")).errors[0].startswith("force: unknown")
    assert (
        (await broker("DELETE", "database/config/pg?force=true&drain=true"))
        .errors[0]
        .startswith("force: allowed without drain")
    )
    answer = await broker("DELETE", "database/config/pg?force=true")
    assert answer.status == 200
    assert answer.body["warnings"][0].startswith("1 users could not be removed")
    assert await _gone(broker, lease)
    assert (await broker("GET", "database/config/pg")).status == 404
    assert (await broker("DELETE", "database/config/pg?force=true")).status == 204
    assert any(entry.get("error") == "its connection was deleted by force" for entry in broker.audit())


@pytest.mark.parametrize("path", ["database/roles/app", "database/config/pg"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("dry_run=maybe", "dry_run"),
        ("dry_run", "dry_run"),
        ("dry_run=", "dry_run"),
        ("drain=2x", "drain"),
        ("drain=", "drain"),
        ("dry_run=true&dry_run=false", "dry_run"),
        ("dryrun=true", "dryrun"),
        ("dry-run=true&drain=true", "dry-run"),
    ],
)
async def test_what_is_not_understood_deletes_nothing(broker: Any, path: str, query: str, field: str) -> None:
    """400 that names the field: whoever misspells `dry_run` must not lose a role."""
    answer = await broker("DELETE", f"{path}?{query}")
    assert answer.status == 400
    assert answer.errors[0].startswith(f"{field}: ")
    assert (await broker("GET", path)).status == 200


@pytest.mark.parametrize(("query", "status"), [("dry_run=true", 200), ("drain=true", 202), ("dry_run=x", 400)])
async def test_every_deletion_is_on_record(broker: Any, query: str, status: int) -> None:
    """Request and response, as of any request; a dry run too, for it tells what there is."""
    before = len(broker.audit())
    assert (await broker("DELETE", f"database/roles/app?{query}")).status == status
    entries = [entry for entry in broker.audit()[before:] if entry["request"]["path"] == "database/roles/app"]
    assert [(entry["type"], entry["request"]["operation"]) for entry in entries] == [
        ("request", "delete"),
        ("response", "delete"),
    ]
    assert set(entries[0]["request"]["data"]) == {query.partition("=")[0]}
    assert bool(entries[1].get("error")) == (status == 400)
