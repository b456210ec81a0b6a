"""Health, seal status, leader, mounts."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

from broker.leases.recover import Recovery
from broker.model import LeaseNumber

SEMVER = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


async def test_health_needs_no_token_and_leaves_no_record(broker: Any) -> None:
    """Bare JSON with a version that clients can parse."""
    before = len(broker.audit())
    answer = await broker("GET", "sys/health", token="")
    assert answer.status == 200
    assert answer.body["initialized"] is True
    assert (answer.body["sealed"], answer.body["standby"]) == (False, False)
    assert isinstance(answer.body["server_time_utc"], int)
    assert SEMVER.fullmatch(answer.body["version"])
    assert len(broker.audit()) == before


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("?standbyok=true&perfstandbyok=1&sealedcode=200&uninitcode=204&standbycode=200&drsecondarycode=1", 200),
        ("?activecode=299", 299),
        ("?activecode=x", 400),
        ("?activecode=1000", 400),
        ("?sealedcode=x", 400),
        ("?haunhealthycode=474&performancestandbycode=473&removedcode=530", 200),
        ("?unknown=1", 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_statuses(broker: Any, method: str, query: str, status: int) -> None:
    """A load balancer chooses what it hears."""
    assert (await broker(method, f"sys/health{query}", token="")).status == status


async def test_health_shows_the_backlog_of_revocations(broker: Any, database: Any, eventually: Any) -> None:
    """A late revocation changes the body at once, and the status only for who asks for that: issuing goes on meanwhile."""
    lease = (await broker("GET", "database/creds/app")).body["lease_id"]

    async def shown() -> tuple[int, int]:
        body = (await broker("GET", "sys/health", token="")).body
        return body["revocations_overdue"], body["revocations_oldest_overdue_seconds"]

    assert await shown() == (0, 0)
    database.down = True
    assert (await broker("PUT", "sys/leases/revoke", {"lease_id": lease, "sync": False})).status == 202

    async def late() -> bool:
        return (await shown())[1] > 0

    await eventually(late)
    assert (await shown())[0] == 1
    for query, status in (
        ("", 200),
        ("?maxoverdue=1h", 200),
        ("?maxoverdue=0", 503),
        ("?maxoverdue=0&overduecode=299", 299),
        ("?maxoverdue=0&activecode=204", 503),
        ("?maxoverdue=-1", 400),
        ("?maxoverdue=soon", 400),
        ("?maxoverdue=0&overduecode=99", 400),
    ):
        for method in ("GET", "HEAD"):
            assert (await broker(method, f"sys/health{query}", token="")).status == status, query
    database.down = False
    assert (await broker("PUT", "sys/leases/revoke", {"lease_id": lease, "sync": True})).status == 204

    async def over() -> bool:
        return await shown() == (0, 0)

    await eventually(over)
    assert (await broker("GET", "sys/health?maxoverdue=0", token="")).status == 200


async def test_seal_status(broker: Any) -> None:
    """Never sealed; the same version as health."""
    body = (await broker("GET", "sys/seal-status", token="")).body
    assert (body["initialized"], body["sealed"], body["type"]) == (True, False, "static")
    assert body["version"] == (await broker("GET", "sys/health")).body["version"]


async def test_leader_and_init(broker: Any) -> None:
    """No replicas; made before the door opened."""
    assert (await broker("GET", "sys/leader", token="")).body["ha_enabled"] is False
    assert (await broker("GET", "sys/init", token="")).body == {"initialized": True}


@pytest.mark.parametrize("path", ["sys/health", "sys/seal-status", "sys/leader", "sys/init"])
async def test_a_wrong_verb_at_a_fixed_handler(broker: Any, path: str) -> None:
    """405 before anybody asks for a token."""
    assert (await broker("DELETE", path, token="")).status == 405


async def test_mounts(broker: Any) -> None:
    """In `data` and at the top level."""
    body = (await broker("GET", "sys/mounts")).body
    assert set(body["data"]) == {"database/", "sys/"}
    assert body["database/"] == body["data"]["database/"]
    assert body["database/"]["type"] == "database"
    one = (await broker("GET", "sys/mounts/database")).body
    assert one["data"]["accessor"] == one["accessor"] == body["database/"]["accessor"]
    answer = await broker("GET", "sys/mounts/kv")
    assert (answer.status, answer.errors) == (400, ["No secret engine mount at kv/"])


@pytest.mark.parametrize("mount", ["database", "sys"])
async def test_the_tuning_of_a_mount(broker: Any, mount: str) -> None:
    """What hvac's `read_mount_configuration` asks for; it can't be changed, and a mount that is not there has none."""
    answer = await broker("GET", f"sys/mounts/{mount}/tune")
    assert answer.status == 200
    shown = {"default_lease_ttl": 0, "max_lease_ttl": 0, "force_no_cache": False, "options": None}
    assert answer.body["data"].items() >= shown.items()
    assert answer.body["description"] == answer.body["data"]["description"]
    assert (await broker("POST", f"sys/mounts/{mount}/tune", {"max_lease_ttl": "1h"})).status == 405
    assert (await broker("GET", "sys/mounts/kv/tune")).status == 400


async def test_mounts_as_a_client_sees_them(broker: Any) -> None:
    """Nothing without a token; any path leads to its mount with one, whatever its policies."""
    nobody = (await broker("GET", "sys/internal/ui/mounts", token="")).body["data"]
    assert nobody == {"secret": {}, "auth": {}}
    token = await broker.new_token(policies=["none"], no_default_policy=True)
    seen = (await broker("GET", "sys/internal/ui/mounts", token=token)).body["data"]
    assert (set(seen["secret"]), set(seen["auth"])) == ({"database/", "sys/"}, {"token/"})
    one = (await broker("GET", "sys/internal/ui/mounts/database/creds/app", token=token)).body["data"]
    assert (one["path"], one["type"], one["options"]) == ("database/", "database", None)


@pytest.mark.parametrize(("path", "with_token"), [("kv/data/x", True), ("database/creds/app", False)])
async def test_no_mount_and_no_token_look_alike(broker: Any, path: str, *, with_token: bool) -> None:
    """403 with the preflight text that clients look for."""
    answer = await broker("GET", f"sys/internal/ui/mounts/{path}", token=None if with_token else "")
    assert answer.status == 403
    assert answer.errors[0].startswith("preflight capability check returned 403")


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Recovery does not come to its end until `over` is set."""
    held = SimpleNamespace(begun=asyncio.Event(), over=asyncio.Event())
    at_start = Recovery.at_start

    async def waiting(recovery: Recovery, highest: LeaseNumber) -> int:
        held.begun.set()
        async with asyncio.timeout(60):
            await held.over.wait()
        return await at_start(recovery, highest)

    monkeypatch.setattr(Recovery, "at_start", waiting)
    return held


async def test_a_start_serves_before_its_recovery_is_over(recovery: SimpleNamespace, broker: Any) -> None:
    """Whatever an earlier process left to be done, health is good and leases are issued, renewed and revoked meanwhile."""
    await recovery.begun.wait()
    assert (await broker("GET", "sys/health")).status == 200
    lease = {"lease_id": (await broker("GET", "database/creds/app")).body["lease_id"]}
    assert (await broker("PUT", "sys/leases/renew", lease)).status == 200
    assert (await broker("PUT", "sys/leases/revoke", lease)).status == 204
    recovery.over.set()
