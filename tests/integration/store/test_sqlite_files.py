"""The SQLite store's files: who may open them, what stands in them, and what happens when they are damaged."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from broker.errors import BrokerError, KeyUnusable, SealBroken, StoreDamaged, StoreInUse, StoreUnavailable
from broker.model import LeaseNumber, LeaseState, TokenNumber
from broker.seal import keyring as keyring_module
from broker.seal.keyring import Purpose
from broker.secret import Secret
from broker.store.sqlite import opening
from broker.store.sqlite.peek import exists, peek
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead, Backlog

TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table'"
PLANTED = [b"planted", b"database/creds", b"creds/app", b"CREATE ROLE", b"owned_objects"]


@pytest.fixture
def opened(directory: Path, clock: Any, master_key: bytes) -> Callable[..., Any]:
    """Opens the store for a while; another key or clock may be given."""

    @asynccontextmanager
    async def open_for_a_while(key: bytes = master_key) -> AsyncIterator[SqliteStore]:
        store = await SqliteStore.open(directory, key, clock)
        try:
            yield store
        finally:
            await store.close()

    return open_for_a_while


@pytest.fixture
async def filled(opened: Any, book_of: Any) -> dict[str, Any]:
    """A closed store with something in every table; the numbers of what is in it."""
    async with opened() as store:
        book = book_of(store)
        token = await book.token()
        expiring = await book.token(ttl_s=3600, parent=token)
        leases = [await book.active(token) for _ in range(20)]
        pooled = await book.pooled(password="planted-password")
        await store.put_document("role", "app", b"planted-body" * 50)
        await store.put_document("connection", "planted-connection", b"planted-body")
        store.confirm_audit(AuditHead(7, b"h" * 32))
    return {"token": token, "expiring": expiring, "leases": leases, "pooled": pooled}


def change(directory: Path, sql: str, *parameters: object) -> None:
    """Changes the file behind the store's back."""
    with closing(sqlite3.connect(directory / "store.db", isolation_level=None)) as db:
        db.execute("DROP TRIGGER lease_keeps_its_place")
        db.execute(sql, parameters)
        db.execute(
            "CREATE TRIGGER lease_keeps_its_place AFTER UPDATE OF connection, token, family ON lease WHEN 0 BEGIN SELECT 1; END"
        )


def value_of(directory: Path, column: str, number: int) -> bytes:
    with closing(sqlite3.connect(directory / "store.db")) as db:
        return db.execute(f"SELECT {column} FROM lease WHERE number = ?", (number,)).fetchone()[0]


def erase_page(path: Path, root_of: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (root_of,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x0a" + bytes(4095))


def make(directory: Path, mode: int, contents: dict[str, bytes] | None = None) -> None:
    directory.mkdir()
    directory.chmod(mode)
    for name, content in (contents or {}).items():
        (directory / name).write_bytes(content)


def modes_in(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# opening ------------------------------------------------------------------------------------------------------------


async def test_reopened_store_holds_what_was_written(filled: Any, opened: Any, book_of: Any) -> None:
    """Leases, tokens, documents, audit head, keys and the broker's name survive."""
    async with opened() as store:
        assert (await store.lease(filled["pooled"])).facts.password == Secret("planted-password")
        assert (await store.token(filled["token"])).facts.policies == ("default", "planted-policy")
        assert [document.name for document in await store.changes_since(0)] == ["app", "planted-connection"]
        assert await store.audit_head() == AuditHead(7, b"h" * 32)
        kept = [store.keyring.subkey(purpose) for purpose in Purpose]
        name = store.broker_id
    async with opened() as store:
        assert [store.keyring.subkey(purpose) for purpose in Purpose] == kept
        assert store.broker_id == name
        assert len(name) == 8
        assert name.isalnum()


async def test_what_a_dead_process_claimed_and_did_not_begin_is_due_at_once(opened: Any, book_of: Any, clock: Any) -> None:
    """Since when it waits stays known; what was begun or put off keeps the time that it was given, and a new epoch guards both."""
    async with opened() as store:
        book = book_of(store)
        token = await book.token()
        claimed, begun, later = [await book.active(token, due_in_ms=due) for due in (1_000, 1_000, 90_000)]
        began = clock.now_ms()
        await book.shift(2)
        assert len(await store.claim_due([LeaseState.ACTIVE], limit=9, hold_ms=60_000)) == 2
        await book.moved(begun, LeaseState.ACTIVE, LeaseState.REVOKING, due_in_ms=50_000, epoch=1)
    async with opened() as store:
        book = book_of(store)
        assert await store.backlog(at_most=9) == Backlog(2, began + 1_000)
        assert [(await book.lease(number)).due_ms - began for number in (claimed, begun, later)] == [1_000, 52_000, 90_000]
        (again,) = await store.claim_due([LeaseState.ACTIVE, LeaseState.REVOKING], limit=9, hold_ms=60_000)
        assert (again.number, again.epoch) == (claimed, 2)


async def test_second_daemon_is_refused_with_the_first_ones_process_id(
    store: SqliteStore, opened: Any, directory: Path
) -> None:
    """In the same process or in another, the text names who has the store and what to do."""
    with pytest.raises(StoreInUse, match=rf"process {os.getpid()}.*stop it"):
        async with opened():
            pass
    script = (
        "import asyncio, pathlib, sys; from broker.clock import SystemClock; from broker.store.sqlite.store import SqliteStore\n"
        "asyncio.run(SqliteStore.open(pathlib.Path(sys.argv[1]), bytes(range(32)), SystemClock()))"
    )
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(directory), stderr=asyncio.subprocess.PIPE)
    _, stderr = await run.communicate()
    assert f"StoreInUse: another broker (process {os.getpid()})" in stderr.decode()
    await store.barrier()


async def test_closed_store_can_be_opened_by_the_next(opened: Any) -> None:
    """The lock goes with the store."""
    for _ in range(2):
        async with opened() as store:
            await store.barrier()


async def test_store_is_not_locked_by_a_failed_opening(filled: Any, opened: Any) -> None:
    """After a refusal the right key opens it."""
    with pytest.raises(KeyUnusable):
        async with opened(b"x" * 32):
            pass
    async with opened() as store:
        assert await store.lease(filled["pooled"]) is not None


async def test_nobody_else_may_read_the_files(directory: Path, clock: Any, master_key: bytes, book_of: Any) -> None:
    """Directory 0700, files 0600, the log and its index too, whatever the umask."""
    umask = os.umask(0)
    try:
        store = await SqliteStore.open(directory, master_key, clock)
        await book_of(store).token()
        modes = modes_in(directory)
        await store.close()
    finally:
        os.umask(umask)
    assert modes_in(directory.parent)["store"] == 0o700
    assert modes == dict.fromkeys(("store.lock", "store.db", "store.db-wal", "store.db-shm"), 0o600)


async def test_rights_of_a_copied_file_are_taken_away(filled: Any, opened: Any, directory: Path) -> None:
    """A store restored with the wrong mode is made private again."""
    (directory / "store.db").chmod(0o644)
    async with opened():
        assert stat.S_IMODE((directory / "store.db").stat().st_mode) == 0o600


async def test_directory_that_others_may_write_to_is_refused(directory: Path, opened: Any) -> None:
    """Who may write there could replace the store."""
    make(directory, 0o770)
    with pytest.raises(StoreUnavailable, match="chmod 700"):
        async with opened():
            pass


async def test_directory_that_is_a_file_is_refused(tmp_path: Path, clock: Any, master_key: bytes) -> None:
    """The text names it."""
    make(tmp_path / "state", 0o700, {"file": b""})
    with pytest.raises(StoreUnavailable, match=r"state/file can't be used"):
        await SqliteStore.open(tmp_path / "state" / "file", master_key, clock)


# what stands in the files -------------------------------------------------------------------------------------------


async def test_promise_7_nothing_stands_in_clear(
    opened: Any, book_of: Any, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No user, role, path, password, policy, statement or document text in the database, its log or a temporary file."""
    temporary = tmp_path / "sqlite-tmp"
    temporary.mkdir()
    monkeypatch.setenv("SQLITE_TMPDIR", str(temporary))
    seen = []

    def grep() -> None:
        for path in [*directory.iterdir(), *temporary.iterdir()]:
            seen.append(path.name)
            content = path.read_bytes().lower()
            assert not [word for word in PLANTED if word.lower() in content], path

    async with opened() as store:
        book = book_of(store)
        token = await book.token()
        for _ in range(50):
            number = await book.pooled()
            await store.hand_out([book.handout(number, token)])
            await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=9, facts=book.facts(remedy=("planted",)))
        await store.put_document("planted-kind", "planted-name", b"planted-body")
        await store.delete_document("planted-kind", "planted-name")
        await store.list_paths()
        await store.leases_in(list(LeaseState), after=LeaseNumber(0), limit=100)
        await store.tally()
        grep()
    grep()
    assert {"store.db", "store.db-wal", "store.db-shm"} <= set(seen)
    with closing(sqlite3.connect(directory / "store.db")) as db:
        clear = repr([db.execute(f"SELECT * FROM {table}").fetchall() for (table,) in db.execute(TABLES).fetchall()])
    assert "planted" not in clear


async def test_erased_password_leaves_no_trace_in_the_database(opened: Any, book_of: Any, directory: Path) -> None:
    """Freed bytes are overwritten, so that not even the sealed form stays behind."""
    async with opened() as store:
        book = book_of(store)
        number = await book.pooled()
    sealed = value_of(directory, "password", number)
    assert sealed in (directory / "store.db").read_bytes()
    async with opened() as store:
        book = book_of(store)
        await book.moved(number, LeaseState.PREPARED, LeaseState.REVOKING)
    assert sealed not in (directory / "store.db").read_bytes()


# keys and moved rows ------------------------------------------------------------------------------------------------


async def test_wrong_master_key_is_refused_and_changes_nothing(filled: Any, opened: Any, directory: Path) -> None:
    """The text says what is wrong; the file stays as it was."""
    before = (directory / "store.db").read_bytes()
    with pytest.raises(KeyUnusable, match="another master key"):
        async with opened(b"x" * 32):
            pass
    assert (directory / "store.db").read_bytes() == before


async def test_file_from_another_key_is_refused(filled: Any, opened: Any, directory: Path, tmp_path: Path, clock: Any) -> None:
    """A store that was copied from elsewhere does not open under our key."""
    other = await SqliteStore.open(tmp_path / "other", b"o" * 32, clock)
    await other.close()
    shutil.copy(tmp_path / "other" / "store.db", directory / "store.db")
    with pytest.raises(KeyUnusable):
        async with opened():
            pass


@pytest.mark.parametrize("column", ["facts", "password"])
async def test_swapped_rows_do_not_open(column: str, opened: Any, book_of: Any, directory: Path) -> None:
    """A value moved to another row is not read, and named by its row."""
    async with opened() as store:
        numbers = [await book_of(store).pooled() for _ in range(2)]
    values = [value_of(directory, column, number) for number in numbers]
    for number, value in zip(numbers, reversed(values), strict=True):
        change(directory, f"UPDATE lease SET {column} = ? WHERE number = ?", value, number)
    async with opened() as store:
        for number in numbers:
            with pytest.raises(SealBroken, match=f"lease {number} does not open"):
                await store.lease(number)


@pytest.mark.parametrize(
    "forgery", ["token = token + 1", "connection = 2", "family = family + 1", "password = facts", "facts = password"]
)
async def test_forged_clear_columns_do_not_open(forgery: str, opened: Any, book_of: Any, directory: Path) -> None:
    """A lease can't be given to another token, connection or path, nor one value taken for another."""
    async with opened() as store:
        book = book_of(store)
        token = await book.token()
        number = await book.active(token, facts=book.facts(password=Secret("x")))
    change(directory, f"UPDATE lease SET {forgery}")
    async with opened() as store:
        with pytest.raises(SealBroken):
            await store.lease(number)


async def test_forged_token_expiry_does_not_open(filled: Any, opened: Any, directory: Path) -> None:
    """A token can't be made to live longer by whoever can write to the file."""
    change(directory, "UPDATE token SET expires = expires + 1000000 WHERE expires IS NOT NULL")
    async with opened() as store:
        with pytest.raises(SealBroken):
            await store.token(filled["expiring"])
        listed = await store.tokens(after=TokenNumber(0), limit=9)
    assert [token.number for token in listed] == [filled["token"]]


async def test_swapped_documents_do_not_open(filled: Any, opened: Any, directory: Path) -> None:
    """A cache is not filled with a body under another name."""
    change(directory, "UPDATE document SET body = (SELECT body FROM document AS other WHERE other.number <> document.number)")
    async with opened() as store:
        with pytest.raises(SealBroken, match="document"):
            await store.changes_since(0)


async def test_damaged_lease_does_not_hold_up_the_others(opened: Any, book_of: Any, directory: Path) -> None:
    """A claim passes over the row that does not open, and claims it no more often than the others."""
    async with opened() as store:
        book = book_of(store)
        token = await book.token()
        broken, sound = await book.active(token, due_in_ms=0), await book.active(token, due_in_ms=0)
    change(directory, "UPDATE lease SET facts = zeroblob(60) WHERE number = ?", broken)
    async with opened() as store:
        claimed = await store.claim_due([LeaseState.ACTIVE], limit=9, hold_ms=1000)
        assert [lease.number for lease in claimed] == [sound]
        assert list(await store.claim_due([LeaseState.ACTIVE], limit=9, hold_ms=1000)) == []
        with pytest.raises(SealBroken):
            await store.lease(broken)


# damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 15, 100, 4095, 4096, 8192, 20_000, -1, -4096])
async def test_truncated_file_is_refused(cut: int, filled: Any, opened: Any, directory: Path) -> None:
    """However much is missing, the store does not open, and says that it is damaged."""
    path = directory / "store.db"
    os.truncate(path, cut if cut >= 0 else path.stat().st_size + cut)
    with pytest.raises(StoreDamaged, match="restore the store"):
        async with opened():
            pass


@pytest.mark.parametrize("content", [b"not a database, but long enough to have a header" * 100, b"\x00" * 8192])
async def test_file_of_something_else_is_refused(content: bytes, directory: Path, opened: Any) -> None:
    """Text, or zeros, are no store."""
    make(directory, 0o700, {"store.db": content})
    with pytest.raises(StoreDamaged):
        async with opened():
            pass


async def test_database_of_another_program_is_refused(directory: Path, opened: Any) -> None:
    """It is left as it was."""
    make(directory, 0o700)
    with closing(sqlite3.connect(directory / "store.db")) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreDamaged, match="not a store of this program"):
        async with opened():
            pass
    with closing(sqlite3.connect(directory / "store.db")) as db:
        assert db.execute(TABLES).fetchall() == [("theirs",)]
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


async def test_log_without_its_database_is_refused(filled: Any, opened: Any, directory: Path) -> None:
    """It is not taken for a first start, nor applied to a new file."""
    (directory / "store.db").rename(directory / "store.db-wal")
    with pytest.raises(StoreDamaged, match="missing"):
        async with opened():
            pass
    assert not (directory / "store.db").exists()


async def test_crash_while_the_store_was_made_leaves_no_store(directory: Path, opened: Any) -> None:
    """What is left of it is removed, and the store is made anew."""
    make(directory, 0o700, {"store.db.new": b"half a store", "store.db.new-journal": b"half a journal"})
    assert not exists(directory)
    async with opened() as store:
        await store.barrier()
    assert exists(directory)
    assert names_in(directory) == {"store.db", "store.lock"}


@pytest.mark.parametrize(
    ("checked_bytes", "root_of"), [(opening._CHECKED_WHOLE_BYTES, "lease_by_ask"), (0, "document"), (0, "path")]
)
async def test_damaged_page_is_found_at_the_start(
    checked_bytes: int, root_of: str, filled: Any, opened: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small file any page; of a large one the tables that everything hangs on."""
    monkeypatch.setattr(opening, "_CHECKED_WHOLE_BYTES", checked_bytes)
    erase_page(directory / "store.db", root_of)
    with pytest.raises(StoreDamaged):
        async with opened():
            pass


async def read_everything(store: SqliteStore, filled: dict[str, Any]) -> tuple[object, ...]:
    """All facts of all leases that still open, and all documents and tokens."""
    leases = {}
    for number in [*filled["leases"], filled["pooled"]]:
        try:
            lease = await store.lease(number)
        except SealBroken:
            continue
        if lease is not None:
            leases[number] = lease.facts
    documents = await store.changes_since(0)
    tokens = await store.tokens(after=TokenNumber(0), limit=100)
    await store.claim_due(list(LeaseState), limit=100, hold_ms=1)
    await store.list_paths()
    return leases, [document.body for document in documents], [token.facts for token in tokens]


@pytest.mark.parametrize("checked_bytes", [opening._CHECKED_WHOLE_BYTES, 0], ids=["checked whole", "too large to check"])
async def test_flipped_bits_never_give_something_half_read(
    checked_bytes: int, filled: Any, opened: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is refused with a clear error, or what comes out of it is what was written."""
    monkeypatch.setattr(opening, "_CHECKED_WHOLE_BYTES", checked_bytes)
    async with opened() as store:
        leases, bodies, tokens = await read_everything(store, filled)
    original = (directory / "store.db").read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(120):
        position = chance.randrange(len(original) * 8)
        damaged = bytearray(original)
        damaged[position // 8] ^= 1 << position % 8
        (directory / "store.db").write_bytes(damaged)
        try:
            async with opened() as store:
                read, read_bodies, read_tokens = await read_everything(store, filled)
        except BrokerError:
            refused += 1
            continue
        assert all(facts == leases[number] for number, facts in read.items())
        assert [body for body in read_bodies if body not in bodies] == []
        assert [facts for facts in read_tokens if facts not in tokens] == []
    assert refused > 0


# what it keeps about itself -----------------------------------------------------------------------------------------


async def test_time_never_starts_below_the_last_commit(opened: Any, book_of: Any, clock: Any) -> None:
    """A wall clock that was set back an hour brings no lease back to life."""
    async with opened() as store:
        book = book_of(store)
        await book.token()
        await book.shift(100)
        await book.token()
    before = clock.at_ms
    clock.at_ms -= 3_600_000
    async with opened() as store:
        assert store.now_ms() >= before


async def test_closing_writes_the_time_of_the_last_second(opened: Any, book_of: Any, clock: Any) -> None:
    """The time is written at most once a second, but always at the end."""
    async with opened() as store:
        book = book_of(store)
        await book.token()
        await book.shift(0.4)
    before = clock.at_ms
    clock.at_ms -= 3_600_000
    async with opened() as store:
        assert store.now_ms() >= before


async def test_confirmed_audit_head_is_durable_after_a_barrier(
    opened: Any, directory: Path, tmp_path: Path, clock: Any
) -> None:
    """A copy of the files taken right then, as after a crash, holds the head."""
    async with opened() as store:
        store.confirm_audit(AuditHead(41, b"h" * 32))
        await store.barrier()
        shutil.copytree(directory, tmp_path / "copy")
    assert peek(tmp_path / "copy", bytes(range(32))).head == AuditHead(41, b"h" * 32)


async def test_auditor_may_look_while_the_broker_runs(opened: Any, directory: Path) -> None:
    """Keys and head can be read beside it, and the broker does not notice."""
    async with opened() as store:
        store.confirm_audit(AuditHead(1, b"h" * 32))
        await store.barrier()
        peeked = peek(directory, bytes(range(32)))
        assert peeked.head == AuditHead(1, b"h" * 32)
        assert peeked.keyring.subkey(Purpose.AUDIT) == store.keyring.subkey(Purpose.AUDIT)
        with pytest.raises(KeyUnusable):
            peek(directory, b"x" * 32)
        await store.put_document("a", "b", b"c")
    with pytest.raises(StoreUnavailable, match="no store"):
        peek(directory / "elsewhere", bytes(range(32)))


async def test_new_data_key_is_stored_with_what_it_seals(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values sealed under the next version open after a restart."""
    monkeypatch.setattr(keyring_module, "SEALS_PER_VERSION", 5)
    async with opened() as store:
        for index in range(20):
            await store.put_document("kind", f"name {index}", b"body")
        versions = len(store.keyring._data_keys)
    assert versions > 2
    async with opened() as store:
        assert [document.body for document in await store.changes_since(0)] == [b"body"] * 20


# moved, removed or replaced while it is open ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("store.db",), ("store.db-wal",), ("store.db", "store.db-wal", "store.db-shm")])
async def test_nothing_is_written_to_a_file_that_was_moved_away(
    store: SqliteStore, book: Any, directory: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """SQLite would go on as if nothing had happened, and all of it be lost at the end; back in its place the file is written again."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    token = await book.token()
    for name in names:
        (directory / name).rename(elsewhere / name)
    with pytest.raises(StoreUnavailable, match="moved, removed or replaced"):
        await book.token()
    for name in names:
        shutil.copyfile(elsewhere / name, directory / name)
    with pytest.raises(StoreUnavailable, match="moved, removed or replaced"):
        await book.reserved(token)
    for name in names:
        (elsewhere / name).rename(directory / name)
    await book.reserved(token)
