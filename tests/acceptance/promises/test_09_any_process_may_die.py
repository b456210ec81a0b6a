"""Work of a process that died is finished by the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.testing.broker import BrokerProcess, until
from broker.testing.database import Database
from broker.testing.leasing import BRIEF_S, issue, look_up, prepare, revoke
from broker.testing.stored import pass_time


@pytest.mark.parametrize(
    "step", ["engine.disable.after", "engine.end_sessions.after", "engine.drop.before", "engine.drop.after"]
)
async def test_promise_9_work_of_the_dead_is_finished(
    tmp_path: Path, database: Database, victim: Sequence[str], step: str
) -> None:
    """A broker that is killed in the middle of a revocation leaves it to the next one, which finishes it at once and once."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start(step, "1")
    await prepare(broker, database.server)
    lease = await issue(broker)
    with pytest.raises(OSError):  # noqa: PT011 - however the connection breaks
        await revoke(broker, lease["lease_id"])
    broker.wait()
    assert not await database.lets_in(lease["data"])
    broker.start()

    async def finished() -> bool:
        shown = await look_up(broker, lease["lease_id"])
        return shown.status == 400

    try:
        await until(finished)
        assert not await database.has(lease["data"]["username"])
        broker.stop()
    finally:
        broker.kill()
    entries = [json.loads(line) for line in broker.audit_file.read_text().splitlines()]
    gone = [
        entry
        for entry in entries
        if entry["type"] == "response" and (entry.get("response", {}).get("data") or {}).get("time_to_dropped_ms") is not None
    ]
    assert len(gone) == 1, gone


async def test_promise_9_expiry_that_died_at_its_claim_goes_on(
    tmp_path: Path, database: Database, victim: Sequence[str]
) -> None:
    """A broker that dies right after it took an expired lease up has put it off by a minute, no longer."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start("store.step.before", "1")
    await prepare(broker, database.server, default_ttl=f"{BRIEF_S}s")
    lease = await issue(broker)
    session = await database.log_in(lease["data"])
    await asyncio.to_thread(broker.wait)
    assert not session.is_closed()
    await pass_time(broker.state, 60_000)
    broker.start()

    async def gone() -> bool:
        return not await database.has(lease["data"]["username"])

    try:
        await until(gone)
    finally:
        broker.kill()
        session.terminate()
