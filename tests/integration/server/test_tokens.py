"""Tokens over HTTP: made, looked up, renewed, ended; children end with their parents, leases with their tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

MADE_WITH = {
    "policies": ["app", "default"],
    "ttl": "1h",
    "meta": {"team": "blue"},
    "display_name": "ci job",
    "num_uses": 0,
    "explicit_max_ttl": "2h",
}


@pytest.fixture
def gone(database: Any, eventually: Any) -> Any:
    """Waits until the database has no user left."""

    async def empty() -> bool:
        return not database.users

    return lambda: eventually(empty)


async def test_create(broker: Any) -> None:
    """The whole `auth`, and a warning for a policy that does not exist."""
    body = (await broker("POST", "auth/token/create", MADE_WITH)).body
    auth = body["auth"]
    assert auth["client_token"].startswith("s.")
    assert len(auth["accessor"]) == 24
    assert auth["policies"] == auth["token_policies"] == ["app", "default"]
    assert auth["metadata"] == {"team": "blue"}
    assert (auth["lease_duration"], auth["renewable"], auth["orphan"]) == (3_600, True, False)
    assert (auth["token_type"], auth["entity_id"], auth["mfa_requirement"], auth["num_uses"]) == ("service", "", None, 0)
    assert body["warnings"] == ['Policy "app" does not exist']


async def test_a_new_token_is_on_record_by_its_hash(broker: Any) -> None:
    """And shown nowhere else."""
    token = await broker.new_token(policies=["default"])
    assert token not in broker.audit_path.read_text()
    made = broker.audit()[-1]["response"]["auth"]
    await broker("GET", "auth/token/lookup-self", token=token)
    assert made["client_token"] == broker.audit()[-1]["request"]["client_token"]


@pytest.mark.parametrize("path", ["create", "create-orphan"])
async def test_an_empty_policy_is_not_roots(broker: Any, path: str) -> None:
    """What a script with an unset variable sends; and what is asked for in vain is said."""
    auth = (await broker("POST", f"auth/token/{path}", {"policies": [""], "entity_alias": "z"})).body
    assert auth["auth"]["policies"] == ["default"]
    assert auth["auth"]["lease_duration"] > 0
    assert any("entity_alias" in warning for warning in auth["warnings"])


async def test_lookup_self(broker: Any) -> None:
    """Vault's fields."""
    token = await broker.new_token(**MADE_WITH)
    data = (await broker("GET", "auth/token/lookup-self", token=token)).body["data"]
    assert data["id"] == token
    assert (data["display_name"], data["path"], data["type"]) == ("token-ci-job", "auth/token/create", "service")
    assert (data["creation_ttl"], data["explicit_max_ttl"], data["num_uses"]) == (3_600, 7_200, 0)
    assert 3_590 <= data["ttl"] <= 3_600
    assert data["expire_time"] > data["issue_time"]
    assert "last_renewal" not in data
    root = (await broker("GET", "auth/token/lookup-self")).body["data"]
    assert (root["ttl"], root["expire_time"], root["policies"]) == (0, None, ["root"])


async def test_lookup_of_others(broker: Any) -> None:
    """By text and by accessor; the accessor's answer has no text."""
    token = await broker.new_token(policies=["default"])
    by_text = (await broker("POST", "auth/token/lookup", {"token": token})).body["data"]
    by_accessor = (await broker("POST", "auth/token/lookup-accessor", {"accessor": by_text["accessor"]})).body["data"]
    assert (by_text["id"], by_accessor["id"]) == (token, "")
    assert by_accessor["creation_time"] == by_text["creation_time"]
    own = (await broker("POST", "auth/token/lookup", {})).body["data"]
    assert own["id"] == broker.token


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("lookup", {"token": "s.none"}, 403, "bad token"),
        ("lookup-accessor", {"accessor": "none"}, 400, "invalid accessor"),
        ("lookup-accessor", {}, 400, "missing accessor"),
        ("renew", {"token": "s.none"}, 400, "token not found"),
        ("renew", {}, 400, "missing token ID"),
        ("renew-accessor", {"accessor": "none"}, 400, "invalid accessor"),
        ("renew-self", {}, 400, "lease is not renewable"),
        ("revoke", {}, 400, "missing token ID"),
        ("revoke-accessor", {}, 400, "missing accessor"),
        ("revoke-orphan", {"token": "s.none"}, 400, "token to revoke not found"),
        ("create", {"policies": ["app", "Response-Wrapping"]}, 400, 'cannot assign policy "response-wrapping"'),
    ],
)
async def test_refusals_of_tokens(broker: Any, path: str, body: dict[str, str], status: int, text: str) -> None:
    """In Vault's words."""
    answer = await broker("POST", f"auth/token/{path}", body)
    assert (answer.status, answer.errors) == (status, [text])


async def test_revoking_what_is_not_there_succeeds(broker: Any) -> None:
    """Quietly by text, with a warning by accessor."""
    assert (await broker("POST", "auth/token/revoke", {"token": "s.none"})).status == 204
    answer = await broker("POST", "auth/token/revoke-accessor", {"accessor": "none"})
    assert (answer.status, answer.body["warnings"]) == (200, ["No token found with this accessor"])


async def test_renew(broker: Any) -> None:
    """By itself, by text and by accessor; counted from now."""
    token = await broker.new_token(policies=["default"], ttl="1h")
    by_self = (await broker("POST", "auth/token/renew-self", {"increment": "30m"}, token=token)).body["auth"]
    assert (by_self["client_token"], by_self["lease_duration"]) == (token, 1_800)
    by_text = (await broker("POST", "auth/token/renew", {"token": token})).body["auth"]
    assert by_text["lease_duration"] == 3_600
    by_accessor = (await broker("POST", "auth/token/renew-accessor", {"accessor": by_self["accessor"], "increment": 60})).body[
        "auth"
    ]
    assert (by_accessor["client_token"], by_accessor["lease_duration"]) == ("", 60)
    data = (await broker("GET", "auth/token/lookup-self", token=token)).body["data"]
    assert data["ttl"] <= 60
    assert data["last_renewal_time"] >= data["creation_time"]


async def test_a_revoked_token_is_refused_at_once(broker: Any) -> None:
    """However lately it was seen; its children too, and theirs."""
    parent = await broker.new_token(ttl="1h")
    child = (await broker("POST", "auth/token/create", {"ttl": "30m"}, token=parent)).body["auth"]["client_token"]
    grandchild = (await broker("POST", "auth/token/create", {"ttl": "20m"}, token=child)).body["auth"]["client_token"]
    # A path that asks nothing but the gate, which remembers tokens.
    for token in (parent, child, grandchild):
        assert (await broker("GET", "sys/internal/ui/mounts/database", token=token)).status == 200
    assert (await broker("POST", "auth/token/revoke", {"token": parent})).status == 204
    for token in (parent, child, grandchild):
        assert (await broker("GET", "sys/internal/ui/mounts/database", token=token)).status == 403


@pytest.mark.parametrize("how", ["revoke", "revoke-self", "revoke-accessor", "revoke-orphan"])
async def test_leases_end_with_their_token(broker: Any, database: Any, gone: Any, how: str) -> None:
    """Whichever way it is ended."""
    auth = (await broker("POST", "auth/token/create", {"ttl": "1h"})).body["auth"]
    token = auth["client_token"]
    await broker("GET", "database/creds/app", token=token)
    assert len(database.users) == 1
    body = {"token": token, "accessor": auth["accessor"]}
    await broker("POST", f"auth/token/{how}", body, token=token if how == "revoke-self" else None)
    await gone()
    assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 403


@pytest.mark.parametrize("order", ["leases/revoke-prefix", "leases/revoke-force", "revoke-prefix", "revoke-force"])
@pytest.mark.parametrize("prefix", ["auth/token/create", "auth/token", "auth"])
async def test_tokens_end_by_the_path_that_made_them(broker: Any, gone: Any, order: str, prefix: str) -> None:
    """All of them, their children and leases: to Vault they are leases, too, of `auth/token/create`."""
    keeper = (await broker("POST", "auth/token/create-orphan", {"ttl": "1h"})).body["auth"]["client_token"]
    made = [await broker.new_token(ttl="1h") for _ in range(2)]
    made.append((await broker("POST", "auth/token/create", {"ttl": "30m"}, token=made[0])).body["auth"]["client_token"])
    await broker("GET", "database/creds/app", token=made[1])
    assert (await broker("PUT", f"sys/{order}/{prefix}")).status == 204
    for token in made:
        assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 403
    await gone()
    # This one was made elsewhere, as was the root token; a wider prefix takes them all.
    others = {(await broker("GET", "auth/token/lookup-self", token=token)).status for token in (keeper, broker.token)}
    assert others == ({200} if prefix.startswith("auth/token/create") else {403})


async def test_tokens_made_elsewhere_outlive_a_prefix(broker: Any) -> None:
    """A prefix counts whole segments, and one that only looks like `auth` is one of leases."""
    token = await broker.new_token(ttl="1h")
    for prefix in ("auth/token/creat", "auth/token/create-orphan", "authx", "database/creds/app"):
        assert (await broker("PUT", f"sys/leases/revoke-prefix/{prefix}", {"sync": False})).status == 202
    assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 200


async def test_children_outlive_an_orphaning(broker: Any) -> None:
    """`revoke-orphan` cuts the tie."""
    parent = await broker.new_token(ttl="1h")
    child = (await broker("POST", "auth/token/create", {"ttl": "30m"}, token=parent)).body["auth"]["client_token"]
    assert (await broker("POST", "auth/token/revoke-orphan", {"token": parent})).status == 204
    data = (await broker("GET", "auth/token/lookup-self", token=child)).body["data"]
    assert data["orphan"] is True


@pytest.mark.parametrize(("path", "body"), [("create-orphan", {}), ("create", {"no_parent": True})])
async def test_orphans_have_no_parent(broker: Any, path: str, body: dict[str, bool]) -> None:
    """They outlive their maker."""
    maker = await broker.new_token(ttl="1h")
    auth = (await broker("POST", f"auth/token/{path}", {"ttl": "30m", **body}, token=maker)).body["auth"]
    assert auth["orphan"] is True
    await broker("POST", "auth/token/revoke", {"token": maker})
    assert (await broker("GET", "auth/token/lookup-self", token=auth["client_token"])).status == 200


async def test_uses_are_counted(broker: Any) -> None:
    """Two requests, and not a third; lookup says how many are left."""
    token = await broker.new_token(num_uses=2, policies=["default"])
    data = (await broker("GET", "auth/token/lookup-self", token=token)).body["data"]
    assert data["num_uses"] == 1
    assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 200
    assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 403


async def test_uses_hold_under_concurrency(broker: Any) -> None:
    """Of many requests at once exactly as many pass as there are uses."""
    token = await broker.new_token(num_uses=5, policies=["default"])
    answers = await asyncio.gather(*(broker("GET", "auth/token/lookup-self", token=token) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [403] * 15


async def test_the_last_use_gets_no_lease(broker: Any, database: Any) -> None:
    """It would end at once."""
    token = await broker.new_token(num_uses=1, ttl="1h")
    answer = await broker("GET", "database/creds/app", token=token)
    assert answer.status == 400
    assert answer.errors[0].startswith("Secret cannot be returned")
    assert database.users == set()
    assert (await broker("GET", "auth/token/lookup-self", token=token)).status == 403


async def test_a_lease_is_capped_by_its_token(broker: Any) -> None:
    """The answer says how long it really lives, and why."""
    token = await broker.new_token(ttl="10m")
    body = (await broker("GET", "database/creds/app", token=token)).body
    assert 590 <= body["lease_duration"] <= 600
    assert "token" in body["warnings"][0]
    shown = (await broker("PUT", "sys/leases/lookup", {"lease_id": body["lease_id"]})).body["data"]
    assert shown["capped_by"] == "token"


async def test_a_lease_whose_token_was_shortened_says_so(broker: Any) -> None:
    """A renewal that leaves a token less time takes it from its leases, and a look-up names the token."""
    token = await broker.new_token(ttl="2h", policies=["root"])
    named = {"lease_id": (await broker("GET", "database/creds/app", token=token)).body["lease_id"]}
    assert (await broker("PUT", "sys/leases/lookup", named)).body["data"]["capped_by"] == ""
    await broker("POST", "auth/token/renew-self", {"increment": "2m"}, token=token)
    shown = (await broker("PUT", "sys/leases/lookup", named)).body["data"]
    assert (shown["ttl"] <= 120, shown["capped_by"]) == (True, "token")


async def test_a_renewal_counts_at_once(broker: Any) -> None:
    """The next lease is capped by the token's new end, however lately the token was seen."""
    token = await broker.new_token(ttl="1m", policies=["root"])
    assert (await broker("GET", "database/creds/app", token=token)).body["lease_duration"] <= 60
    await broker("POST", "auth/token/renew-self", {"increment": "30m"}, token=token)
    assert (await broker("GET", "database/creds/app", token=token)).body["lease_duration"] > 1_700


async def test_a_child_that_outlives_its_parent_is_warned(broker: Any) -> None:
    """Since it ends with it, and so does its lease; it may have more time when its parent has."""
    parent = await broker.new_token(ttl="1m")
    body = (await broker("POST", "auth/token/create", {"ttl": "1h"}, token=parent)).body
    assert any("the parent token ends before" in warning for warning in body["warnings"])
    child = body["auth"]["client_token"]
    assert 50 < body["auth"]["lease_duration"] <= 60
    assert (await broker("GET", "database/creds/app", token=child)).body["lease_duration"] <= 60
    renewed = (await broker("POST", "auth/token/renew-self", token=child)).body
    assert any("the parent token ends before" in warning for warning in renewed["warnings"])
    await broker("POST", "auth/token/renew-self", {"increment": "10m"}, token=parent)
    renewed = (await broker("POST", "auth/token/renew-self", {"increment": "5m"}, token=child)).body
    assert (renewed["auth"]["lease_duration"], renewed["warnings"]) == (300, None)


async def test_a_child_that_was_seen_lately_is_shortened_too(broker: Any) -> None:
    """What is remembered of it is forgotten when its parent's end moves nearer."""
    parent = await broker.new_token(ttl="1h")
    child = (await broker("POST", "auth/token/create", {"ttl": "1h"}, token=parent)).body["auth"]["client_token"]
    assert (await broker("GET", "database/creds/app", token=child)).body["lease_duration"] > 3_500
    await broker("POST", "auth/token/renew-self", {"increment": "1m"}, token=parent)
    assert (await broker("GET", "database/creds/app", token=child)).body["lease_duration"] <= 60


async def test_expired_tokens_end_with_their_leases(broker: Any, gone: Any, eventually: Any) -> None:
    """By themselves, when their time has come."""
    token = await broker.new_token(ttl="1h")
    assert (await broker("GET", "database/creds/app", token=token)).status == 200
    await broker("POST", "auth/token/renew-self", {"increment": 1}, token=token)
    await gone()

    async def refused() -> bool:
        return bool((await broker("GET", "auth/token/lookup-self", token=token)).status == 403)

    await eventually(refused)


async def test_accessors_are_listed(broker: Any) -> None:
    """All tokens that have not ended."""
    auth = (await broker("POST", "auth/token/create", {"ttl": "1h"})).body["auth"]
    keys = (await broker("LIST", "auth/token/accessors")).body["data"]["keys"]
    assert len(keys) == 2
    await broker("POST", "auth/token/revoke-accessor", {"accessor": auth["accessor"]})
    assert auth["accessor"] not in (await broker("LIST", "auth/token/accessors")).body["data"]["keys"]


async def test_only_root_makes_tokens_for_now(broker: Any) -> None:
    """The default policy has no such path."""
    token = await broker.new_token(policies=["default"])
    assert (await broker("POST", "auth/token/create", {}, token=token)).status == 403
