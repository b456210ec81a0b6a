"""What "revoked" means, shown with the whole broker: sessions on standbys, sessions of users that are no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.testing.broker import Broker, until
from broker.testing.database import ENDED, Database
from broker.testing.leasing import issue, look_up, revoke, write_connection, write_role
from broker.testing.postgresql import PostgresServer
from broker.testing.standby import Standby


@pytest.fixture(scope="module")
def standby(postgresql_18: PostgresServer) -> Iterator[Standby]:
    """A hot standby of the shared server."""
    with Standby(postgresql_18) as server:
        yield server


async def prepare(broker: Broker, name: str, server: PostgresServer, **fields: Any) -> None:
    """A connection and a role of the same name."""
    await write_connection(broker, server, name, **fields)
    await write_role(broker, name, db_name=name)


async def test_standby_that_is_away_holds_up_its_own_leases_alone(tmp_path: Path, standby: Standby, database: Database) -> None:
    """While it is away a lease is contained, not gone, and its look-up names the standby and the way out; others end meanwhile.

    Once it is back, the revocation ends, and so do the sessions that were open there.
    """
    place = f"{standby.host}:{standby.port}"
    async with Broker(tmp_path / "state") as broker:
        await prepare(broker, "watched", database.server, standbys=[place])
        await prepare(broker, "plain", database.server)
        watched, plain = await issue(broker, "watched"), await issue(broker, "plain")
        standby.stop()
        for lease in (watched, plain):
            await revoke(broker, lease["lease_id"])

        async def shown() -> Any:
            return (await look_up(broker, watched["lease_id"])).data

        await until(lambda: database.ask("SELECT 1 WHERE to_regrole(quote_ident($1)) IS NULL", plain["data"]["username"]))

        async def failed() -> bool:
            return bool((await shown()).get("revoke_error"))

        await until(failed)
        found = await shown()
        assert f"standby {place} can't be reached" in found["revoke_error"]
        assert f"/* on {place} */" in found["remedy"][-1]
        assert not await database.lets_in(watched["data"])
        assert await database.has(watched["data"]["username"])
        standby.start()
        await revoke(broker, watched["lease_id"])

        async def gone() -> bool:
            return not await database.has(watched["data"]["username"])

        await until(gone, limit_s=60)


async def test_session_of_a_user_that_was_dropped_by_hand_is_swept(tmp_path: Path, database: Database) -> None:
    """A session that goes on after somebody dropped its user is ended within the interval of the sweep, counted and in the audit log."""
    async with Broker(tmp_path / "state", content={"leases": {"sweep": 1}}) as broker:
        await prepare(broker, "swept", database.server)
        login = (await issue(broker, "swept"))["data"]
        session: Any = await database.log_in(login)
        await database.run(f'DROP ROLE "{login["username"]}"')

        async def ended() -> bool:
            try:
                await session.fetchval("SELECT 1")
            except ENDED:
                return True
            return False

        await until(ended)
        metrics = broker.daemon.metrics
        await until(lambda: _counted(metrics, "swept"))
        log = broker.config.store.directory / "audit.log"

        async def recorded() -> bool:
            return '"operation":"sweep"' in log.read_text()

        await until(recorded)


async def _counted(metrics: Any, connection: str) -> bool:
    return bool(metrics.swept_sessions.labels(connection)._value.get() == 1)
