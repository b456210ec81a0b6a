"""Stores of every earlier schema are brought to the newest, once, and nothing in them is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker.clock import SystemClock
from broker.errors import StoreDamaged, StoreUnavailable
from broker.model import LeaseFacts, LeaseNumber, LeaseState, TokenNumber
from broker.secret import Secret
from broker.store.sqlite import schema
from broker.store.sqlite.schema import migrations
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead

MASTER_KEY = bytes(range(32))
DUMPS = sorted(Path(__file__).parent.glob("store_v*.sql"))
AFTER_ALL = max(migrations()) + 1


class ThatDay:
    """The moment at which the dumps were written."""

    def now_ms(self) -> int:
        return 1_800_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms()

    def raise_to(self, floor_ms: int) -> None:
        assert floor_ms <= self.now_ms()


def restore(dump: Path, directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    with closing(sqlite3.connect(directory / "store.db")) as db:
        db.executescript(dump.read_text())
    return directory


def versions(directory: Path) -> list[int]:
    with closing(sqlite3.connect(directory / "store.db")) as db:
        return [row[0] for row in db.execute("SELECT version FROM schema_version ORDER BY version")]


def tables(directory: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(directory / "store.db")) as db:
        return set(db.execute("SELECT name, sql FROM sqlite_schema").fetchall())


async def facts(store: SqliteStore, number: int) -> LeaseFacts:
    lease = await store.lease(LeaseNumber(number))
    assert lease is not None
    return lease.facts


def test_every_version_has_its_dump() -> None:
    """A migration comes with a store of the version that it leads to: tests/migration/write_store.py."""
    assert [dump.stem for dump in DUMPS] == [f"store_v{version}" for version in migrations()]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
async def test_store_of_an_earlier_version_is_read_whole(dump: Path, tmp_path: Path) -> None:
    """Every kind of row comes out as it went in, and the schema is the newest."""
    directory = restore(dump, tmp_path / "store")
    store = await SqliteStore.open(directory, MASTER_KEY, ThatDay())
    counts = await store.tally()
    assert counts.by_state == dict.fromkeys(
        (LeaseState.RESERVED, LeaseState.PREPARING, LeaseState.PREPARED, LeaseState.STUCK), 1
    ) | {LeaseState.ACTIVE: 2}
    assert (await facts(store, 201)).username == "v-app-1"
    assert (await facts(store, 205)).password == Secret("password")
    assert (await facts(store, 203)).remedy == ("DROP",)
    asked = await store.asked(b"k" * 16)
    assert asked is not None
    assert (asked.number, asked.facts.password) == (202, Secret("password"))
    handed_out = await store.lease(LeaseNumber(206))
    assert handed_out is not None
    assert (handed_out.token, handed_out.due_ms) == (101, 1_800_000_600_000)
    assert [lease.number for lease in await store.unsettled(9)] == [206]
    token = await store.token(TokenNumber(101))
    assert token is not None
    assert (token.parent, token.uses_left, token.digest) == (100, 3, b"\x01" * 32)
    documents = await store.changes_since(0)
    assert [(document.kind, document.name, document.deleted) for document in documents] == [
        ("connection", "pg", False),
        ("role", "app", False),
        ("role", "old", True),
    ]
    assert await store.audit_head() == AuditHead(12, b"\x02" * 32)
    assert list(await store.list_paths()) == ["database/creds/app"]
    assert await store.highest_number() == 206
    await store.close()
    assert versions(directory) == list(migrations())


async def test_migrated_store_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    """Migrations and a fresh start lead to the same tables."""
    directory = restore(DUMPS[0], tmp_path / "old")
    for path in (directory, tmp_path / "new"):
        await (await SqliteStore.open(path, MASTER_KEY, SystemClock())).close()
    assert tables(directory) == tables(tmp_path / "new")


async def test_migration_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start finds it done."""
    script = "CREATE TABLE later (x INTEGER) STRICT;\n-- and; a comment\nINSERT INTO later VALUES (1);\n"
    monkeypatch.setattr(schema, "migrations", lambda: migrations() | {AFTER_ALL: script})
    directory = restore(DUMPS[-1], tmp_path / "store")
    for _ in range(2):
        await (await SqliteStore.open(directory, MASTER_KEY, SystemClock())).close()
    with closing(sqlite3.connect(directory / "store.db")) as db:
        assert db.execute("SELECT x FROM later").fetchall() == [(1,)]
    assert versions(directory) == [*migrations(), AFTER_ALL]


async def test_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first half is undone, and the former version of the program still opens the store."""
    script = "CREATE TABLE later (x INTEGER) STRICT;\nINSERT INTO nowhere VALUES (1);\n"
    directory = restore(DUMPS[-1], tmp_path / "store")
    before = tables(directory)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: migrations() | {AFTER_ALL: script})
        with pytest.raises(StoreUnavailable, match="nowhere"):
            await SqliteStore.open(directory, MASTER_KEY, SystemClock())
    assert tables(directory) == before
    store = await SqliteStore.open(directory, MASTER_KEY, SystemClock())
    assert await store.lease(LeaseNumber(201)) is not None
    await store.close()


async def test_store_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    """The text names both versions and what to do; nothing is changed."""
    directory = restore(DUMPS[-1], tmp_path / "store")
    with closing(sqlite3.connect(directory / "store.db")) as db:
        db.execute("INSERT INTO schema_version VALUES (999, 0)")
        db.commit()
    with pytest.raises(StoreDamaged, match=r"newer version.*schema 999.*install that version"):
        await SqliteStore.open(directory, MASTER_KEY, SystemClock())
    assert versions(directory) == [*migrations(), 999]
