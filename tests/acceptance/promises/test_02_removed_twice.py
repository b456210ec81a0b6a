"""The broker drops the user, and the database itself stops its login where the broker is dead."""

from __future__ import annotations

from pathlib import Path

from broker.testing.broker import BrokerProcess, until
from broker.testing.database import Database
from broker.testing.leasing import BRIEF_S, SLACK_S, issue, prepare


async def test_promise_2_removed_twice(tmp_path: Path, database: Database) -> None:
    """With the broker dead the login stops by itself; with the broker back the user goes."""
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, database.server, default_ttl=f"{BRIEF_S}s")
        login = (await issue(broker))["data"]
        broker.kill()
        assert await database.lets_in(login)
        [row] = await database.ask(
            "SELECT rolvaliduntil - clock_timestamp() <= make_interval(secs => $2) FROM pg_roles WHERE rolname = $1",
            login["username"],
            BRIEF_S + SLACK_S,
        )
        assert row[0]

        async def refused() -> bool:
            return not await database.lets_in(login)

        await until(refused)
        assert await database.has(login["username"])
        broker.start()

        async def gone() -> bool:
            return not await database.has(login["username"])

        await until(gone)
