"""The intent is durable before the database hears of it: a crash leaves no user that the store does not know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.model import LeaseState
from broker.testing.broker import BrokerProcess, until
from broker.testing.database import Database
from broker.testing.leasing import prepare
from broker.testing.stored import stored_leases


@pytest.mark.parametrize("step", ["store.reserve.after", "engine.create.before", "engine.create.after", "store.move.before"])
async def test_promise_1_written_before_done(tmp_path: Path, database: Database, victim: Sequence[str], step: str) -> None:
    """Killed on its way through an issue, the broker has written down every user that the database has; the next start removes it."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start()
    await prepare(broker, database.server)
    broker_id = (await broker.request("GET", "sys/health")).body["cluster_id"]
    broker.kill()
    broker.start(step, "1")
    with pytest.raises(OSError):  # noqa: PT011 - however the connection breaks
        await broker.request("GET", "database/creds/app")
    broker.wait()
    made = set(await database.users(broker_id))
    leases = await stored_leases(broker.state)
    assert [lease.state for lease in leases] == [LeaseState.RESERVED]
    assert made <= {str(lease.facts.username) for lease in leases}
    assert bool(made) is (step in ("engine.create.after", "store.move.before"))
    broker.start()

    async def clean() -> bool:
        return not await database.users(broker_id)

    async def told() -> bool:
        return '"operation":"recover"' in broker.audit_file.read_text()

    try:
        await until(clean)
        await until(told)
    finally:
        broker.kill()
