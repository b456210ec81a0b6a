"""What is kept opens in its own place with its own key, or not at all."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from broker import daemon
from broker.errors import BrokerError, KeyUnusable, SealBroken, StoreDamaged
from broker.seal.providers import MemoryKey
from broker.testing.broker import Broker
from broker.testing.database import Database
from broker.testing.leasing import issue, look_up, prepare


@pytest.fixture
async def stopped(tmp_path: Path, database: Database) -> tuple[Path, MemoryKey, Any]:
    """The state directory of a stopped broker with a lease, its key, and what it answers about the lease."""
    key = MemoryKey()
    async with Broker(tmp_path / "state", seams=daemon.Seams(key=key)) as broker:
        await prepare(broker, database.server)
        lease = await issue(broker)
        answer = await look_around(broker, lease["lease_id"])
    return tmp_path / "state", key, (lease["lease_id"], answer)


async def look_around(broker: Broker, lease_id: str) -> list[Any]:
    """What the store says of connection, role, tokens and lease, as far as it does not change with time."""
    seen = [
        await broker.request("GET", "database/config/pg"),
        await broker.request("GET", "database/roles/app"),
        await broker.request("GET", "auth/token/lookup-self"),
        await look_up(broker, lease_id),
    ]
    return [
        {key: value for key, value in answer.data.items() if key != "ttl"} if answer.status == 200 else answer.status
        for answer in seen
    ]


async def test_promise_7_sealed_at_rest(tmp_path: Path, stopped: tuple[Path, MemoryKey, Any]) -> None:
    """Any flipped bit is a clear refusal to start or to answer, or stands where nothing is read: never another answer."""
    state, key, (lease_id, before) = stopped
    content = (state / "store.db").read_bytes()
    dice = random.Random(7)
    refused = 0
    for attempt in range(40):
        place = dice.randrange(len(content) * 8)
        copy = Path(shutil.copytree(state, tmp_path / f"copy-{attempt}"))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        (copy / "store.db").write_bytes(flipped)
        try:
            async with Broker(copy, seams=daemon.Seams(key=key)) as broker:
                seen = await look_around(broker, lease_id)
        except (StoreDamaged, SealBroken, KeyUnusable):
            refused += 1
            continue
        for now, then in zip(seen, before, strict=True):
            assert now == then or now in (400, 403, 404, 503), (place, now, then)
    assert refused


async def test_promise_7_a_moved_value_does_not_open(stopped: tuple[Path, MemoryKey, Any]) -> None:
    """Sealed values that change places between two rows are refused, though each is whole."""
    state, key, _ = stopped
    with sqlite3.connect(state / "store.db") as db:
        (first, one), (second, other) = db.execute("SELECT number, body FROM document ORDER BY number LIMIT 2").fetchall()
        db.execute("UPDATE document SET body = ? WHERE number = ?", (other, first))
        db.execute("UPDATE document SET body = ? WHERE number = ?", (one, second))
    db.close()
    with pytest.raises(SealBroken):
        await Broker(state, seams=daemon.Seams(key=key)).__aenter__()


async def test_promise_7_another_key_opens_nothing(stopped: tuple[Path, MemoryKey, Any]) -> None:
    """With another master key the start is refused, and changes nothing: with the right one it works afterwards."""
    state, key, _ = stopped
    with pytest.raises(BrokerError) as refused:
        await Broker(state, seams=daemon.Seams(key=MemoryKey())).__aenter__()
    assert isinstance(refused.value, KeyUnusable | SealBroken)
    async with Broker(state, seams=daemon.Seams(key=key)) as broker:
        assert (await broker.request("GET", "database/roles/app")).status == 200
