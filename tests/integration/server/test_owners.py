"""Leases that belong to an identity: to the token without a parent from which the asking one descends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from broker.identity import tokens


@dataclass
class Family:
    """A token without a parent (`head`), its `child`, a sibling of that, and a grandchild."""

    broker: Any
    head: str
    child: str
    sibling: str
    grandchild: str

    async def ask(self, token: str, role: str = "app", **headers: str) -> Any:
        return await self.broker("GET", f"database/creds/{role}", token=token, headers=headers)

    async def lease(self, token: str, role: str = "app") -> dict[str, Any]:
        answer = await self.ask(token, role)
        assert answer.status == 200
        body: dict[str, Any] = answer.body
        return body

    async def look_up(self, lease_id: str) -> Any:
        return await self.broker("PUT", "sys/leases/lookup", {"lease_id": lease_id})

    async def state(self, lease_id: str) -> str:
        answer = await self.look_up(lease_id)
        return str(answer.body["data"]["state"]) if answer.status == 200 else "gone"

    async def accessor(self, token: str) -> str:
        return str((await self.broker("GET", "auth/token/lookup-self", token=token)).body["data"]["accessor"])

    async def revoke(self, token: str, how: str = "revoke") -> None:
        assert (await self.broker("POST", f"auth/token/{how}", {"token": token})).status == 204


async def _made(broker: Any, by: str | None, ttl: str, **fields: Any) -> str:
    auth = (await broker("POST", "auth/token/create", {"ttl": ttl} | fields, token=by)).body["auth"]
    return str(auth["client_token"])


@pytest.fixture
async def family(broker: Any) -> Family:
    """The role `app` has leases of identities; the head lives 30 minutes, all others one."""
    await broker("PUT", "database/roles/app", {"lease_owner": "identity"})
    head = await _made(broker, None, "30m", no_parent=True)
    child, sibling = [await _made(broker, head, "1m") for _ in range(2)]
    return Family(broker, head, child, sibling, await _made(broker, child, "1m"))


async def test_a_lease_outlives_the_token_that_asked(family: Family, eventually: Any, database: Any) -> None:
    """It has the head's remaining life, goes on when the child that asked is revoked, can be renewed then, and ends with the head."""
    leases = [await family.lease(token) for token in (family.child, family.grandchild)]
    for lease in leases:
        assert 1_700 < lease["lease_duration"] <= 1_800
        assert "remaining life of the token" in lease["warnings"][0]
    await family.revoke(family.child)
    assert (await family.ask(family.grandchild)).status == 403
    for lease in leases:
        assert await family.state(lease["lease_id"]) == "active"
        renewed = await family.broker("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"]})
        assert 1_700 < renewed.body["lease_duration"] <= 1_800
    assert len(database.users) == 2
    await family.revoke(family.head)

    async def empty() -> bool:
        return not database.users

    await eventually(empty)


async def test_a_lease_of_a_token_ends_with_it(family: Family) -> None:
    """As in Vault, which is the default: what a role says later is no matter of the leases that it made before."""
    await family.broker("PUT", "database/roles/app", {"lease_owner": ""})
    lease = await family.lease(family.child)
    assert lease["lease_duration"] <= 60
    await family.broker("PUT", "database/roles/app", {"lease_owner": "identity"})
    await family.revoke(family.child)
    assert await family.state(lease["lease_id"]) != "active"


async def test_who_asked_is_on_record_and_the_lease_says_whose_it_is(family: Family) -> None:
    """The audit log has the caller's token, in the request and in the answer; a look-up names the head's accessor."""
    lease = await family.lease(family.grandchild)
    asked = [entry for entry in family.broker.audit() if entry["request"]["path"] == "database/creds/app"]
    assert [entry["type"] for entry in asked] == ["request", "response"]
    await family.broker("GET", "auth/token/lookup-self", token=family.grandchild)
    of_itself = family.broker.audit()[-1]
    for entry in asked:
        assert entry["auth"]["accessor"] == of_itself["auth"]["accessor"]
        assert entry["request"]["client_token"] == of_itself["request"]["client_token"]
    shown = (await family.look_up(lease["lease_id"])).body["data"]
    assert shown["token_accessor"] == await family.accessor(family.head)
    assert shown["capped_by"] == "token"


async def test_the_heads_new_end_counts_at_once(family: Family) -> None:
    """However lately it was seen: renewed for longer the next lease is longer, for less all leases are shorter."""
    first = await family.lease(family.child)
    await family.broker("POST", "auth/token/renew-self", {"increment": "50m"}, token=family.head)
    assert (await family.lease(family.child))["lease_duration"] > 2_900
    await family.broker("POST", "auth/token/renew-self", {"increment": "5m"}, token=family.head)
    assert (await family.lease(family.child))["lease_duration"] <= 300
    assert (await family.look_up(first["lease_id"])).body["data"]["ttl"] <= 300


async def test_a_head_that_leaves_its_children_behind_takes_its_leases(family: Family, database: Any, eventually: Any) -> None:
    """The children are heads from that moment on, however lately they were seen; the same where a token in between left its own."""
    lease = await family.lease(family.child)
    await family.lease(family.grandchild)
    await family.revoke(family.head, "revoke-orphan")
    assert await family.state(lease["lease_id"]) != "active"

    async def empty() -> bool:
        return not database.users

    await eventually(empty)
    lease = await family.lease(family.grandchild)
    assert (await family.look_up(lease["lease_id"])).body["data"]["token_accessor"] == await family.accessor(family.child)
    await family.revoke(family.child, "revoke-orphan")
    lease = await family.lease(family.grandchild)
    assert (await family.look_up(lease["lease_id"])).body["data"]["token_accessor"] == await family.accessor(family.grandchild)


@pytest.mark.parametrize("ended", ["child", "head"])
async def test_a_token_that_ends_while_its_user_is_made_gets_no_lease(
    family: Family, database: Any, eventually: Any, ended: str
) -> None:
    """Whether the caller's own ends or the head: the answer is 403, and the user goes."""
    database.gate.clear()
    asking = asyncio.create_task(family.ask(family.child))

    async def waiting() -> bool:
        return bool(database.waiting)

    await eventually(waiting)
    await family.revoke(getattr(family, ended))
    database.gate.set()
    assert (await asking).status == 403

    async def empty() -> bool:
        return not database.users

    await eventually(empty)


async def test_asking_again_is_between_a_token_and_the_broker(family: Family) -> None:
    """The same key, or a role that re-issues, gives no other token of the family the password, though all leases are the head's."""
    await family.broker("PUT", "database/roles/again", {"db_name": "pg", "reissue": True, "lease_owner": "identity"})
    for role, headers in (("again", {}), ("app", {"Idempotency-Key": "k"})):
        first, again, other = [
            (await family.ask(token, role, **headers)).body["lease_id"]
            for token in (family.child, family.child, family.sibling)
        ]
        assert first == again
        assert other != first


async def test_lease_owner_is_read_back_and_checked(broker: Any) -> None:
    """`token` unless it was written; anything else is refused by the field's name."""
    path = "database/roles/app"
    assert (await broker("GET", path)).body["data"]["lease_owner"] == "token"
    assert (await broker("PUT", path, {"lease_owner": "identity"})).status == 204
    assert (await broker("PUT", path, {"max_leases": 5})).status == 204
    assert (await broker("GET", path)).body["data"]["lease_owner"] == "identity"
    answer = await broker("PUT", path, {"lease_owner": "entity"})
    assert (answer.status, answer.errors) == (400, ["lease_owner: not known; allowed are token and identity"])


class TestLimits:
    """What a head's family may hold together."""

    @pytest.fixture
    def settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings | {"leases": {"max_per_token": 2}}

    async def test_all_leases_of_a_family_count_for_its_head(self, family: Family, broker: Any) -> None:
        """Children get no more by being many; another head has its own limit."""
        for token in (family.child, family.grandchild):
            await family.lease(token)
        for token in (family.head, family.sibling):
            answer = await family.ask(token)
            assert answer.status == 429
            assert "max_per_token" in answer.errors[0]
        other = await _made(broker, None, "1m", no_parent=True)
        await family.lease(other)


async def test_a_line_is_not_followed_without_end(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is too many generations away from its head is told so; it may still have leases of its own."""
    monkeypatch.setattr(tokens, "_GENERATIONS", 1)
    assert (await family.ask(family.child)).status == 200
    answer = await family.ask(family.grandchild)
    assert answer.status == 400
    assert "more than 1 generations" in answer.errors[0]
    await family.broker("PUT", "database/roles/app", {"lease_owner": "token"})
    assert (await family.ask(family.grandchild)).status == 200
