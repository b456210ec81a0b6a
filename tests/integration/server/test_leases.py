"""Leases over HTTP: looked up, renewed, ended."""

from __future__ import annotations

import re
from typing import Any

import pytest

from broker.leases.query import LeaseView, Query


@pytest.fixture
async def lease(broker: Any) -> dict[str, Any]:
    """The answer that issued a lease."""
    return dict((await broker("GET", "database/creds/app")).body)


async def test_lookup(broker: Any, lease: dict[str, Any]) -> None:
    """Vault's fields and our own."""
    data = (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).body["data"]
    assert data["id"] == lease["lease_id"]
    assert data["path"] == "database/creds/app"
    assert data["last_renewal"] is None
    assert data["renewable"] is True
    assert 3_590 <= data["ttl"] <= 3_600
    assert data["expire_time"] > data["issue_time"]
    assert (data["state"], data["capped_by"], data["username"]) == ("active", "", lease["data"]["username"])
    assert "password" not in data


@pytest.mark.parametrize(
    ("body", "text"), [({"lease_id": "database/creds/app/x"}, "invalid lease"), ({}, "lease_id must be specified")]
)
async def test_lookup_of_nothing(broker: Any, body: dict[str, str], text: str) -> None:
    """400 in Vault's words."""
    answer = await broker("PUT", "sys/leases/lookup", body)
    assert (answer.status, answer.errors) == (400, [text])


async def test_the_tree_of_leases(broker: Any, lease: dict[str, Any]) -> None:
    """One level at a time."""
    last = lease["lease_id"].rpartition("/")[2]
    for prefix, keys in (
        ("", ["database/"]),
        ("/database", ["creds/"]),
        ("/database/creds/", ["app/"]),
        ("/database/creds/app", [last]),
    ):
        assert (await broker("LIST", f"sys/leases/lookup{prefix}")).body["data"] == {"keys": keys}
    assert (await broker("LIST", "sys/leases/lookup/none")).status == 404


@pytest.mark.parametrize("form", ["body", "path", "legacy", "legacy path"])
async def test_renew(broker: Any, lease: dict[str, Any], form: str) -> None:
    """Counted from now, in every form that clients use."""
    lease_id = lease["lease_id"]
    path = {"body": "sys/leases/renew", "path": f"sys/leases/renew/{lease_id}", "legacy": "sys/renew"}.get(
        form, f"sys/renew/{lease_id}"
    )
    body = {"increment": 600} if "path" in form else {"lease_id": lease_id, "increment": "10m"}
    renewed = (await broker("PUT", path, body)).body
    assert (renewed["lease_id"], renewed["renewable"], renewed["lease_duration"]) == (lease_id, True, 600)
    assert renewed["data"] is None
    shown = (await broker("PUT", "sys/leases/lookup", {"lease_id": lease_id})).body["data"]
    assert shown["last_renewal"] is not None


async def test_the_body_wins_over_the_path(broker: Any, lease: dict[str, Any]) -> None:
    """As Vault has it for lease ids."""
    renewed = await broker("PUT", "sys/leases/renew/other", {"lease_id": lease["lease_id"]})
    assert renewed.body["lease_id"] == lease["lease_id"]


async def test_a_renewal_is_capped_with_a_warning(broker: Any, lease: dict[str, Any]) -> None:
    """By the role's maximum, and lookup says so."""
    renewed = (await broker("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"], "increment": "9h"})).body
    assert 7_100 <= renewed["lease_duration"] <= 7_200
    assert "exceeded the effective max_ttl" in renewed["warnings"][0]
    shown = (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).body["data"]
    assert shown["capped_by"] == "max_ttl"


async def test_renewing_nothing(broker: Any) -> None:
    """400 in Vault's words."""
    answer = await broker("PUT", "sys/leases/renew", {"lease_id": "database/creds/app/x"})
    assert (answer.status, answer.errors) == (400, ["lease not found"])


@pytest.mark.parametrize("form", ["body", "path", "legacy", "legacy path"])
async def test_revoke_waits_until_the_user_is_gone(broker: Any, database: Any, lease: dict[str, Any], form: str) -> None:
    """204 then, in every form that clients use."""
    lease_id = lease["lease_id"]
    path = {"body": "sys/leases/revoke", "path": f"sys/leases/revoke/{lease_id}", "legacy": "sys/revoke"}.get(
        form, f"sys/revoke/{lease_id}"
    )
    answer = await broker("PUT", path, None if "path" in form else {"lease_id": lease_id})
    assert (answer.status, database.users) == (204, set())
    assert (await broker("PUT", "sys/leases/lookup", {"lease_id": lease_id})).status == 400


async def test_revoke_may_be_left_to_the_background(broker: Any, lease: dict[str, Any]) -> None:
    """202 with an empty body, and the lease can't be renewed from then on."""
    answer = await broker("PUT", f"sys/leases/revoke/{lease['lease_id']}", {"sync": False})
    assert (answer.status, answer.raw) == (202, b"")
    assert (await broker("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"]})).status == 400


async def test_revoking_nothing_succeeds(broker: Any) -> None:
    """It is gone already."""
    assert (await broker("PUT", "sys/leases/revoke", {"lease_id": "database/creds/app/x"})).status == 204
    assert (await broker("PUT", "sys/leases/revoke", {})).status == 400


@pytest.mark.parametrize("prefix", ["database", "database/creds/app"])
async def test_revoke_prefix(broker: Any, database: Any, prefix: str) -> None:
    """All under it, and nothing beside it."""
    await broker("PUT", "database/roles/apple", {"db_name": "pg"})
    other = await broker("GET", "database/creds/apple")
    for _ in range(3):
        await broker("GET", "database/creds/app")
    assert (await broker("PUT", f"sys/leases/revoke-prefix/{prefix}")).status == 204
    left = set() if prefix == "database" else {other.body["data"]["username"]}
    assert database.users == left


async def test_revoke_force_forgets_what_a_dead_database_keeps(broker: Any, database: Any, lease: dict[str, Any]) -> None:
    """The way out when a database never comes back; it says how many users stay behind, and that they may still log in."""
    database.down = True
    answer = await broker("PUT", "sys/leases/revoke-force/database/creds")
    assert answer.status == 200
    assert re.match(r"1 users could not be removed and may still log in .* `broker reconcile`", answer.body["warnings"][0])
    assert (await broker("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).status == 400


async def test_revoke_force_without_need_is_silent(broker: Any, database: Any, lease: dict[str, Any]) -> None:
    """Where all users could be removed nothing is left to be told."""
    answer = await broker("PUT", "sys/leases/revoke-force/database/creds")
    assert (answer.status, answer.raw, database.users) == (204, b"", set())
    assert lease["lease_id"]


async def test_a_lease_that_is_being_revoked_has_ended(broker: Any, database: Any, lease: dict[str, Any]) -> None:
    """The refusal of the dead database says so, and its end is no longer the one that it was issued with."""
    database.down = True
    named = {"lease_id": lease["lease_id"]}
    answer = await broker("PUT", "sys/leases/revoke", named)
    assert answer.status == 503
    assert "the lease has ended" in answer.errors[0]
    data = (await broker("PUT", "sys/leases/lookup", named)).body["data"]
    assert (data["state"], data["ttl"]) == ("revoking", 0)
    assert data["issue_time"] <= data["expire_time"] <= data["failing_since"]


async def test_tidy(broker: Any) -> None:
    """Starts in the background."""
    answer = await broker("PUT", "sys/leases/tidy")
    assert answer.status == 202
    assert answer.body["warnings"][0].startswith("Tidy operation successfully started.")


async def test_stuck_leases_are_counted_and_listed(broker: Any) -> None:
    """None here; the type must be asked for."""
    count = (await broker("GET", "sys/leases/count?type=irrevocable")).body["data"]
    assert count == {"lease_count": 0, "counts": {}}
    listed = (await broker("GET", "sys/leases?type=irrevocable&limit=none&include_child_namespaces=true")).body
    assert (listed["data"], listed["warnings"]) == ({"lease_count": 0, "leases": []}, None)
    assert (await broker("GET", "sys/leases/count?type=other")).status == 404
    answer = await broker("GET", "sys/leases?type=irrevocable&limit=0")
    assert answer.status == 400


async def test_lookup_says_since_when_a_revocation_fails(broker: Any, database: Any, lease: dict[str, Any]) -> None:
    """With the failure; a lease that has not failed has no such fields."""
    named = {"lease_id": lease["lease_id"]}
    assert not {"failing_since", "revoke_error"} & (await broker("PUT", "sys/leases/lookup", named)).body["data"].keys()
    database.down = True
    assert (await broker("PUT", "sys/leases/revoke", named)).status == 503
    data = (await broker("PUT", "sys/leases/lookup", named)).body["data"]
    assert data["revoke_error"]
    assert data["issue_time"] <= data["failing_since"]
    assert data["failing_since"].endswith("Z")


async def test_a_stuck_lease_is_listed_with_its_age(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since when it fails, why, and what would let it finish."""
    view = LeaseView(
        lease_id="database/creds/app/x",
        path="database/creds/app",
        issue_ms=0,
        expire_ms=1_000,
        last_renewal_ms=None,
        renewable=False,
        ttl_s=0,
        capped_by="",
        state="stuck",
        stage="disabled",
        username="v-app",
        token_accessor="a",
        sessions_until_ms=None,
        failing_since_ms=1_800_000_000_000,
        revoke_error="it owns a table",
        remedy=("DROP TABLE t",),
    )

    async def stuck(_query: Query, _limit: int) -> list[LeaseView]:
        return [view]

    monkeypatch.setattr(Query, "stuck", stuck)
    (shown,) = (await broker("GET", "sys/leases?type=irrevocable")).body["data"]["leases"]
    assert (shown["failing_since"], shown["error"]) == ("2027-01-15T08:00:00.000000000Z", "it owns a table")
    assert shown["remedy"] == ["DROP TABLE t"]


async def test_the_default_policy_renews_and_looks_up(broker: Any, lease: dict[str, Any]) -> None:
    """Whoever knows a lease id may renew it, and nothing more."""
    token = await broker.new_token(policies=["default"])
    body = {"lease_id": lease["lease_id"]}
    assert (await broker("PUT", "sys/leases/renew", body, token=token)).status == 200
    assert (await broker("PUT", "sys/leases/lookup", body, token=token)).status == 200
    assert (await broker("PUT", "sys/leases/revoke", body, token=token)).status == 403
