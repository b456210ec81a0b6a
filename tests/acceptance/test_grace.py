"""Sessions that go on when the time of their lease is over, with the whole broker and real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.testing.broker import BrokerProcess, until
from broker.testing.database import ENDED, Database
from broker.testing.leasing import issue, look_up, revoke, write_connection, write_role
from broker.testing.postgresql import PostgresServer


async def prepare(broker: BrokerProcess, server: PostgresServer, login: dict[str, str]) -> None:
    """A connection, and roles with a long grace (on demand and prepared), with a short one, and with none."""
    await write_connection(broker, server, scram_iterations=1, **login)
    await write_role(broker, "long", session_grace="1h")
    await write_role(broker, "pooled", session_grace="1h", prepared_users=1)
    await write_role(broker, "short", session_grace="1s")
    await write_role(broker, "plain")


async def opened(broker: BrokerProcess, database: Database, role: str) -> tuple[Any, Any]:
    """A lease with a session of its user, whose time is over as good as now."""
    lease = await issue(broker, role)
    session: Any = await database.log_in(lease["data"])
    renewed = await broker.request("PUT", "sys/leases/renew", {"lease_id": lease["lease_id"], "increment": 1})
    assert renewed.status == 200, renewed
    return lease, session


async def shown(broker: BrokerProcess, lease: Any) -> Any:
    """The lease, as it is shown."""
    return (await look_up(broker, lease["lease_id"])).data


async def in_grace(broker: BrokerProcess, lease: Any) -> None:
    """Waits until its login is off."""

    async def login_off() -> bool:
        found = await shown(broker, lease)
        return (found["state"], found["stage"]) == ("grace", "login_off")

    await until(login_off)


async def has_ended(session: Any) -> bool:
    """Whether the server has ended it."""
    try:
        await session.fetchval("SELECT 1")
    except ENDED:
        return True
    return False


async def test_open_sessions_go_on_and_new_logins_are_refused(
    tmp_path: Path, postgresql: PostgresServer, login: dict[str, str]
) -> None:
    """Also when the broker is killed meanwhile. A revocation ends them at once."""
    database = Database(postgresql)
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, postgresql, login)
        spared = [await opened(broker, database, role) for role in ("long", "pooled")]
        for lease, session in spared:
            await in_grace(broker, lease)
            assert (await shown(broker, lease))["sessions_until"] > (await shown(broker, lease))["expire_time"]
            assert not await database.lets_in(lease["data"])
            assert not await has_ended(session)
        broker.kill()
        broker.start()
        # Behind this revocation whatever the start found due has been worked off.
        lease, session = await opened(broker, database, "plain")
        await revoke(broker, lease["lease_id"])
        assert await has_ended(session)
        for lease, session in spared:
            assert (await shown(broker, lease))["state"] == "grace"
            assert not await has_ended(session)
            revoked = await revoke(broker, lease["lease_id"])
            assert revoked.status == 204, revoked
            assert await has_ended(session)
            assert not await database.has(lease["data"]["username"])


async def test_sessions_end_with_the_grace(tmp_path: Path, postgresql: PostgresServer, login: dict[str, str]) -> None:
    """Then the user goes; the audit log says when its login went, and when it was gone."""
    database = Database(postgresql)
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, postgresql, login)
        lease, session = await opened(broker, database, "short")
        name = lease["data"]["username"]

        async def recorded() -> bool:
            return any('"time_to_dropped_ms"' in line and name in line for line in _lines(broker))

        await until(recorded)
        assert await has_ended(session)
        assert not await database.has(name)
        [gone] = [json.loads(line) for line in _lines(broker) if '"time_to_dropped_ms"' in line and name in line]
        data = gone["response"]["data"]
        assert data["reason"] == "expired"
        assert data["time_to_dropped_ms"] >= 1_000


def _lines(broker: BrokerProcess) -> list[str]:
    return [line for line in broker.audit_file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
