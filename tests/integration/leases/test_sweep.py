"""The sweep: sessions of users that are no more, on every connection, each for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from broker.engines.protocol import Swept
from broker.errors import AuditUnavailable, DatabaseUnavailable, UserRemains
from broker.leases.sweep import Sweeper


@pytest.fixture
async def sweeper(rig: Any) -> Any:
    """The sweeper of a rig that has the connections `main` and `other`."""
    await rig.connection("other")
    made = Sweeper(rig.boot.parts)
    yield made
    await made.stop()


async def sweep(sweeper: Sweeper) -> list[Any]:
    """Runs the sweeps that are due to their end; answers what was logged."""
    with structlog.testing.capture_logs() as logged:
        await sweeper.run()
        await asyncio.gather(*sweeper._running.values())
        await asyncio.sleep(0)
    return logged


def abandon(rig: Any, connection: str, sessions: int = 1) -> tuple[str, list[int]]:
    """A user with sessions that somebody removes by hand; its identity, and the sessions."""
    server = rig.server(connection)
    account = server.add("left")
    account.sessions.update(range(100, 100 + sessions))
    server.remove("left")
    return account.identity, list(range(100, 100 + sessions))


async def test_sweep_ends_counts_and_records(rig: Any, sweeper: Sweeper) -> None:
    """Abandoned sessions of each connection are ended at the start, counted, and in the audit log with user and place in clear."""
    identity, sessions = abandon(rig, "main", 2)
    _, others = abandon(rig, "other")
    await sweep(sweeper)
    assert not any(rig.server("main").is_open(session) for session in sessions)
    assert not any(rig.server("other").is_open(session) for session in others)
    assert rig.boot.parts.metrics.swept_sessions.labels("main")._value.get() == 2
    request, response = [entry for entry in rig.entries() if entry["request"]["operation"] == "sweep"][:2]
    assert request["request"]["data"]["connection"] in ("main", "other")
    assert response["response"]["data"] in ({"sessions": 2, "identity": identity}, {"sessions": 1, "identity": identity})


async def test_sweep_comes_again_when_its_time_has_come(rig: Any, sweeper: Sweeper) -> None:
    """Not before `leases.sweep` has passed, and then each time."""
    await sweep(sweeper)
    abandon(rig, "main")
    await sweep(sweeper)
    assert rig.server("main").is_open(100)
    rig.clock.advance(rig.settings.sweep * 1_000)
    await sweep(sweeper)
    assert not rig.server("main").is_open(100)


async def test_sweep_that_ends_nothing_leaves_no_trace(rig: Any, sweeper: Sweeper) -> None:
    """Where there is nothing to end, nothing is logged or audited."""
    assert await sweep(sweeper) == []
    assert not [entry for entry in rig.entries() if entry["request"]["operation"] == "sweep"]


async def test_dead_database_delays_no_other(rig: Any, sweeper: Sweeper) -> None:
    """While one connection's database does not answer, the others are swept, again and again; it is not asked twice at once."""
    gate = rig.hold("before other.sweep")
    for _ in range(2):
        abandon(rig, "main")
        await sweeper.run()
        await gate.entered.wait()
        async with asyncio.timeout(60):
            while len(sweeper._running) > 1:
                await asyncio.sleep(0.001)
        assert not rig.server("main").is_open(100)
        rig.clock.advance(rig.settings.sweep * 1_000)
    assert rig.passed.count("before other.sweep") == 1
    gate.opened.set()


async def test_what_is_wrong_is_said_once(rig: Any, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing right is logged with its remedy at the first sweep, not at every one; and again after it was fine in between."""
    found: list[Swept] = [Swept(error=UserRemains("may not", remedy=("GRANT it",)))]

    async def answer(*_: Any) -> list[Swept]:
        return found

    engine = await rig.boot.catalog.engine_for(rig.boot.catalog.connections()[0])
    monkeypatch.setattr(engine, "sweep", answer)
    said = []
    for now in ([*found], [*found], [], [*found]):
        found[:] = now
        said.append([(line["error"], line["remedy"]) for line in await sweep(sweeper)])
        rig.clock.advance(rig.settings.sweep * 1_000)
        found[:] = [Swept(error=UserRemains("may not", remedy=("GRANT it",)))]
    assert said == [[("may not", ("GRANT it",))], [], [], [("may not", ("GRANT it",))]]


async def test_outage_is_said_once(rig: Any, sweeper: Sweeper) -> None:
    """A database that is away is one line in the log, however long and with whatever text."""
    for number in range(3):
        rig.plans.clear()
        rig.fail("before main.sweep", DatabaseUnavailable(f"away for the {number}. time"))
        logged = await sweep(sweeper)
        assert len(logged) == (1 if number == 0 else 0)
        rig.clock.advance(rig.settings.sweep * 1_000)


async def test_sweep_does_not_wait_for_the_audit_log(rig: Any, sweeper: Sweeper) -> None:
    """Sessions are ended though the log can't be written; what was ended is recorded once it can."""
    abandon(rig, "main")
    rig.fail("before audit.record", AuditUnavailable())
    await sweep(sweeper)
    assert not rig.server("main").is_open(100)
    assert not [entry for entry in rig.entries() if entry["request"]["operation"] == "sweep"]
    rig.heal()
    rig.clock.advance(rig.settings.sweep * 1_000)
    await sweep(sweeper)
    assert len([entry for entry in rig.entries() if entry["request"]["operation"] == "sweep"]) == 2


async def test_deleted_connection_is_forgotten(rig: Any, sweeper: Sweeper) -> None:
    """Of a connection that is no more nothing is kept."""
    await sweep(sweeper)
    assert len(sweeper._due_ms) == 2
    await rig.boot.catalog.delete_connection("other")
    rig.clock.advance(10_000_000)
    await rig.boot.catalog.purge_retired()
    await sweep(sweeper)
    assert len(sweeper._due_ms) == 1
