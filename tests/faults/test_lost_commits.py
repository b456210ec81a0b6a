"""A store that lost its newest commits, while the audit log has what was answered after them, at the real daemon."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.model import LeaseState
from broker.testing.broker import CREATE_USER, BrokerProcess, connection_to, until
from broker.testing.postgresql import PostgresServer

_FRAME_HEADER = 24
"""Before each page in SQLite's write-ahead log."""
_KEPT, _LATER, _POOL = 3, 2, 2
OLDER = "the store is older than the audit log"


@dataclass
class Killed:
    """A broker that was killed, and what is known of its store at the moment before its last leases."""

    broker: BrokerProcess
    copy: Path
    """Of the store, as it was then."""
    log_size: int
    """Of its write-ahead log then, in bytes."""
    later: set[str]
    """The leases after that, both on demand and prepared before it."""
    all: set[str]

    @property
    def store(self) -> Path:
        return self.broker.state / "store.db"

    @property
    def wal(self) -> Path:
        return self.broker.state / "store.db-wal"


def nothing(_: Killed) -> None:
    """The disc has kept all that was written."""


def a_bit(killed: Killed) -> None:
    """Flips one in the first page that was written after that moment."""
    content = bytearray(killed.wal.read_bytes())
    content[killed.log_size + _FRAME_HEADER] ^= 1
    killed.wal.write_bytes(content)


def older_copy(killed: Killed) -> None:
    """Puts the store of that moment in place."""
    killed.wal.unlink()
    shutil.copy(killed.copy, killed.store)


def no_log(killed: Killed) -> None:
    """As where only `store.db` was copied: all that was ever written is in its log."""
    killed.wal.unlink()


async def issued(broker: BrokerProcess, role: str, count: int) -> set[str]:
    answers = [await broker.request("GET", f"database/creds/{role}") for _ in range(count)]
    return {str(answer.body["lease_id"]) for answer in answers}


@pytest.fixture
async def killed(tmp_path: Path, postgresql_18: PostgresServer) -> Killed:
    with BrokerProcess(tmp_path) as broker:
        role = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False}
        for path, body in (
            ("database/config/pg", connection_to(postgresql_18)),
            ("database/roles/app", role),
            ("database/roles/pooled", {**role, "prepared_users": _POOL}),
        ):
            assert (await broker.request("PUT", path, body)).status == 204
        kept = await issued(broker, "app", _KEPT)

        async def pool_is_full() -> bool:
            with closing(sqlite3.connect(broker.state / "store.db")) as store:
                found = store.execute("SELECT count(*) FROM lease WHERE state = ?", (int(LeaseState.PREPARED),))
                return bool(found.fetchone() == (_POOL,))

        await until(pool_is_full)
        log_size = (broker.state / "store.db-wal").stat().st_size
        copy = tmp_path / "copy.db"
        with closing(sqlite3.connect(broker.state / "store.db")) as store, closing(sqlite3.connect(copy)) as target:
            store.backup(target)
        later = await issued(broker, "app", _LATER) | await issued(broker, "pooled", _POOL)
        broker.kill()
    return Killed(broker, copy, log_size, later, kept | later)


@pytest.mark.parametrize(
    ("loss", "lost"),
    [(nothing, None), (a_bit, "later"), (older_copy, "later"), (no_log, "all")],
    ids=["nothing", "a bit of its log", "an older copy", "all of its log"],
)
async def test_store_that_lost_commits_is_told(killed: Killed, loss: Callable[[Killed], None], lost: str | None) -> None:
    """The start says that leases which were answered are missing, how many, and what to do; after a mere crash it says nothing."""
    loss(killed)
    expected = getattr(killed, lost) if lost else set()
    await asyncio.to_thread(killed.broker.start)
    try:
        told = [line for line in killed.broker.log_lines() if line.get("event") == OLDER]
        assert [line["leases_lost"] for line in told] == ([len(expected)] if expected else [])
        assert all(line["level"] == "error" and line["first"] in expected and "reconcile" in line["remedy"] for line in told)
        assert "Traceback" not in killed.broker.log()
    finally:
        killed.broker.kill()
