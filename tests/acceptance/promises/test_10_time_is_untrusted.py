"""A clock that jumps ends nothing and revives nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.testing.broker import BrokerProcess, until
from broker.testing.database import Database
from broker.testing.leasing import BRIEF_S, SLACK_S, issue, look_up, prepare, write_role


class Wall:
    """The wall clock of a process, `shift` ahead of the true one; clocks that nobody can set stay as they are."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._file = directory / "faketime"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(library.with_name("libfaketimeMT.so.1")),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, shift: str) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{shift}\n")
        draft.rename(self._file)


@pytest.fixture
def wall(libfaketime: Path, tmp_path: Path) -> Wall:
    """The wall clock of the test's broker."""
    return Wall(libfaketime, tmp_path)


async def test_promise_10_time_is_untrusted(tmp_path: Path, database: Database, wall: Wall) -> None:
    """Set an hour forward and an hour back, the wall clock ends no lease and brings none back; the jump is logged and audited."""
    with BrokerProcess(tmp_path, environment=wall.environment) as broker:
        await prepare(broker, database.server, default_ttl="30m")
        await write_role(broker, "brief", default_ttl=f"{BRIEF_S}s")
        lasting = await issue(broker)
        for shift in ("+1h", "-1h"):
            wall.set(shift)

            async def told(jumps: int = 1 if shift == "+1h" else 2) -> bool:
                logged = [line["event"] for line in broker.log_lines()]
                recorded = broker.audit_file.read_text().count("sys/clock")
                return min(logged.count("the wall clock was set; leases go by broker time"), recorded) >= jumps

            await until(told)
            passing = await issue(broker, "brief")
            [row] = await database.ask(
                "SELECT extract(epoch FROM rolvaliduntil - clock_timestamp())::float FROM pg_roles WHERE rolname = $1",
                passing["data"]["username"],
            )
            assert row[0] <= BRIEF_S + SLACK_S

            async def gone(lease_id: str = passing["lease_id"]) -> bool:
                return (await look_up(broker, lease_id)).status == 400

            await until(gone)
            assert not await database.has(passing["data"]["username"])
            shown = await look_up(broker, lasting["lease_id"])
            assert shown.data["state"] == "active"
            assert 1_500 < shown.data["ttl"] <= 1_800
            assert await database.lets_in(lasting["data"])


async def test_promise_10_a_start_in_the_past_resurrects_nothing(tmp_path: Path, database: Database, wall: Wall) -> None:
    """After a restart with the clock an hour back, time goes on from where it was: the lease ends when it would have."""
    with BrokerProcess(tmp_path, environment=wall.environment) as broker:
        await prepare(broker, database.server, default_ttl="5s")
        lease = await issue(broker)
        broker.stop()
        wall.set("-1h")
        broker.start()

        async def gone() -> bool:
            return (await look_up(broker, lease["lease_id"])).status == 400

        await until(gone)
        assert not await database.has(lease["data"]["username"])


async def test_promise_10_a_start_in_the_future_ends_nothing_silently(tmp_path: Path, database: Database, wall: Wall) -> None:
    """After a restart with the clock hours ahead, many leases fall due at once: the database's clock is asked, and expiry waits aloud."""
    with BrokerProcess(tmp_path, "[leases]\nmass_expiry = 3\n", environment=wall.environment) as broker:
        await prepare(broker, database.server, default_ttl="1h")
        leases = [await issue(broker) for _ in range(4)]
        broker.stop()
        wall.set("+3h")
        broker.start()

        async def told() -> bool:
            logged = "clocks disagree on connection pg: mass expiry waits" in broker.log()
            return logged and "mass expiry waits" in broker.audit_file.read_text()

        await until(told)
        assert [await database.lets_in(lease["data"]) for lease in leases] == [True] * 4
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")
