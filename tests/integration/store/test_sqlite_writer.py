"""The SQLite store's writes: committed in groups, undone alone, never lost once acknowledged, and refused on a full disc."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import OutcomeUnknown, StateConflict, StoreUnavailable
from broker.model import LeaseNumber, LeaseState
from broker.store.sqlite import writer as writer_module
from broker.store.sqlite.connection import commit_error
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead, TokenEnd

WRITING_PROCESS = """
import asyncio, itertools, pathlib, resource, sys
from broker.clock import SystemClock
from broker.errors import StoreUnavailable
from broker.ids import Numbers
from broker.model import *
from broker.store.sqlite.store import SqliteStore
from broker.store.words import *

async def main(directory, file_limit):
    store = await SqliteStore.open(pathlib.Path(directory), bytes(range(32)), SystemClock())
    numbers = Numbers(SystemClock(), above=await store.highest_number())
    facts = TokenFacts(accessor=Accessor("a"), policies=("p",), display_name="d", path="p")
    token = Token(number=TokenNumber(numbers.next()), parent=NO_TOKEN, expires_ms=None, uses_left=None, digest=b"", facts=facts)
    await store.add_token(token, ttl_s=None)
    lease = LeaseFacts(path="m/creds/r", role="r", role_revision=1, connection_name="c", username=UserName("u" * 900))

    async def write():
        number = LeaseNumber(numbers.next())
        asked = Reservation(number=number, connection=ConnectionNumber(1), token=token.number, facts=lease, due_in_ms=0)
        try:
            await store.reserve([asked])
        except StoreUnavailable as refused:
            print("refused", number, refused, flush=True)
            return False
        print("done", number, flush=True)
        return True

    async def write_on(most):
        for _ in range(most):
            if not await write():
                return

    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
        await asyncio.gather(*(write_on(100_000) for _ in range(8)))
        await write_on(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await asyncio.gather(*(write_on(3) for _ in range(8)))
        await store.close()
    else:
        await asyncio.gather(*(write_on(10_000_000) for _ in range(8)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


class Gate:
    """Holds the writer's thread, so that operations queue up behind it."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._entered, self._open = threading.Event(), threading.Event()

    async def __aenter__(self) -> None:
        self._held = asyncio.ensure_future(self._store._writer.do(self._hold))
        await asyncio.to_thread(self._entered.wait, 30)

    async def __aexit__(self, *_: object) -> None:
        self._open.set()
        await self._held

    def _hold(self, _db: object, _now_ms: int) -> None:
        self._entered.set()
        assert self._open.wait(30)


class Failing:
    """Stands before the commit: lets the gate's own group pass, and fails for the next."""

    def __init__(self, store: SqliteStore) -> None:
        self._before_commit, self._calls = store._vitals.before_commit, 0

    def __call__(self, db: sqlite3.Connection, now_ms: int) -> Any:
        self._calls += 1
        if self._calls == 2:
            raise sqlite3.OperationalError("disk I/O error")
        return self._before_commit(db, now_ms)


@pytest.fixture
def gate(store: SqliteStore) -> Gate:
    return Gate(store)


@pytest.fixture
def commits(store: SqliteStore) -> Iterator[list[str]]:
    """Every COMMIT that SQLite carries out."""
    seen: list[str] = []
    store._writer._db.set_trace_callback(lambda statement: seen.append(statement) if statement == "COMMIT" else None)
    yield seen
    store._writer._db.set_trace_callback(None)


async def started(*operations: Any) -> list[asyncio.Future[Any]]:
    """Operations that have been queued but not yet carried out."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    await asyncio.sleep(0)
    return tasks


# groups -------------------------------------------------------------------------------------------------------------


async def test_all_that_wait_are_committed_at_once(book: Any, gate: Gate, commits: list[str]) -> None:
    """Fifty writers behind a slow commit share the next one."""
    token = await book.token()
    commits.clear()
    async with gate:
        waiting = await started(*(book.store.reserve([book.reservation(token)]) for _ in range(50)))
    assert [list(await answer) for answer in waiting] == [[None]] * 50
    assert len(commits) == 2


async def test_group_has_a_most(book: Any, gate: Gate, commits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long queue is committed in several groups, in the order of asking."""
    monkeypatch.setattr(writer_module, "MOST_IN_GROUP", 10)
    commits.clear()
    async with gate:
        waiting = await started(*(book.store.put_document("kind", f"name {index}", b"") for index in range(25)))
    revisions = [(await answer).revision for answer in waiting]
    assert revisions == sorted(revisions)
    assert len(commits) == 1 + 3


async def test_queue_has_a_most(book: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past it new writes are refused at once, and those before are carried out."""
    monkeypatch.setattr(writer_module, "MOST_WAITING", 3)
    async with gate:
        waiting = await started(*(book.store.put_document("kind", f"name {index}", b"") for index in range(5)))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[3:]] == [StoreUnavailable] * 2
    assert len(await book.store.changes_since(0)) == 3


async def test_failing_operation_fails_alone(book: Any, gate: Gate, store: SqliteStore) -> None:
    """What it did is undone; the others of its group are committed."""

    def half_done(db: sqlite3.Connection, _now_ms: int) -> None:
        db.execute("INSERT INTO counter (name, value) VALUES ('half', 1)")
        raise ArithmeticError("in the middle")

    token = await book.token()
    async with gate:
        before, failing, after = await started(
            store.reserve([book.reservation(token)]), store._writer.do(half_done), store.reserve([book.reservation(token)])
        )
    with pytest.raises(ArithmeticError, match="in the middle"):
        await failing
    assert (list(await before), list(await after)) == ([None], [None])
    assert store._reader.row("SELECT count(*) FROM counter WHERE name = 'half'", {}) == (0,)


async def test_batch_with_an_impossible_row_is_undone_whole(book: Any) -> None:
    """A number that is there already makes the whole batch fail, and nothing of it is written."""
    token = await book.token()
    taken = await book.reserved(token)
    fresh = book.reservation(token)
    with pytest.raises(StateConflict, match="UNIQUE"):
        await book.store.reserve([fresh, book.reservation(token, number=taken)])
    assert await book.store.lease(fresh.number) is None


async def test_store_refuses_a_state_that_cannot_be(book: Any) -> None:
    """The tables themselves hold the rules: a pool user without a token does not become active by a move."""
    number = await book.pooled()
    with pytest.raises(StateConflict, match="CHECK"):
        await book.moved(number, LeaseState.PREPARED, LeaseState.ACTIVE)
    assert await book.state(number) is LeaseState.PREPARED


async def test_cancelled_caller_leaves_its_write_to_happen(book: Any, gate: Gate) -> None:
    """Cancellation stops the waiting alone; the others are answered."""
    async with gate:
        first, second = await started(book.store.put_document("kind", "a", b""), book.store.put_document("kind", "b", b""))
        first.cancel()
    await second
    assert [document.name for document in await book.store.changes_since(0)] == ["a", "b"]


async def test_point_reads_do_not_wait_for_a_writer(book: Any, gate: Gate) -> None:
    """While a transaction is under way, the last committed state is read."""
    number = await book.reserved(await book.token())
    async with gate:
        assert (await book.store.lease(number)).state is LeaseState.RESERVED
        assert len(await book.store.list_paths()) == 1


async def test_closing_carries_out_what_was_accepted(book: Any, store: SqliteStore, gate: Gate) -> None:
    """What was queued before is done; what comes after is refused."""
    async with gate:
        accepted = await started(*(store.put_document("kind", f"name {index}", b"") for index in range(5)))
        closing = asyncio.ensure_future(store.close())
    await closing
    assert len({(await answer).number for answer in accepted}) == 5
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.put_document("kind", "late", b"")
    await store.close()


async def test_idle_commits_write_nothing(store: SqliteStore) -> None:
    """Asking for due work again and again leaves no trace on the disc."""
    await store.barrier()
    changes = store._writer._db.total_changes
    for _ in range(5):
        await store.claim_due([LeaseState.ACTIVE], limit=9, hold_ms=1)
        await store.end_expired_tokens(9)
        await store.barrier()
    assert store._writer._db.total_changes == changes


async def test_audit_head_is_written_along_with_a_commit(book: Any, store: SqliteStore, commits: list[str]) -> None:
    """A confirmed head costs no commit of its own."""
    commits.clear()
    store.confirm_audit(AuditHead(9, b"h" * 32))
    await book.token()
    assert len(commits) == 1
    assert store._vitals._saved_head == AuditHead(9, b"h" * 32)


# a disc that fails --------------------------------------------------------------------------------------------------


async def fill(book: Any, token: Any, last: list[Any]) -> None:
    """Writes leases until that fails; `last` holds those that were tried last."""
    while True:
        last[:] = [book.reservation(token) for _ in range(20)]
        await book.store.reserve(last)


async def test_promise_8_full_store_refuses_and_recovers(book: Any, store: SqliteStore) -> None:
    """While there is no space, writes are refused and nothing of them is done; reads and what frees space go on."""
    token = await book.token()
    db = store._writer._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    refused: list[Any] = []
    with pytest.raises(StoreUnavailable, match="free space"):
        await fill(book, token, refused)
    assert [await store.lease(one.number) for one in refused] == [None] * 20
    tally = (await store.tally())[LeaseState.RESERVED]
    db.execute("PRAGMA max_page_count = 1000000").fetchone()
    assert list(await store.reserve(refused)) == [None] * 20
    assert (await store.tally())[LeaseState.RESERVED] == tally + 20


async def test_commit_that_fails_undoes_its_group_and_no_more(book: Any, store: SqliteStore, gate: Gate) -> None:
    """All of the group hear of it, nothing of it is done, and the next write succeeds."""
    token = await book.token()
    asked = [book.reservation(token) for _ in range(3)]
    before_commit = store._vitals.before_commit
    async with gate:
        waiting = await started(*(store.reserve([one]) for one in asked))
        store._vitals.before_commit = Failing(store)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    store._vitals.before_commit = before_commit
    assert [await store.lease(one.number) for one in asked] == [None] * 3
    assert list(await store.reserve(asked)) == [None] * 3


async def test_unconfirmed_flush_is_an_unknown_outcome() -> None:
    """Where the disc did not confirm the commit itself, nothing is claimed about it."""
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode, failure.sqlite_errorname = sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"
    assert isinstance(commit_error(failure), OutcomeUnknown)
    failure.sqlite_errorcode, failure.sqlite_errorname = sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE"
    assert type(commit_error(failure)) is StoreUnavailable


async def run_writer(directory: Path, file_limit: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WRITING_PROCESS,
        str(directory),
        str(file_limit),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_full_disc_under_load_loses_nothing(directory: Path, clock: Any, master_key: bytes) -> None:
    """What was acknowledged before and after is there, what was refused is not, in a process whose files may not grow."""
    process = await run_writer(directory, 2_000_000)
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    lines = [line.split(maxsplit=2) for line in stdout.decode().splitlines()]
    done = {int(line[1]) for line in lines if line[0] == "done"}
    refused = {int(line[1]) for line in lines if line[0] == "refused"}
    assert len(refused) >= 9
    store = await SqliteStore.open(directory, master_key, clock)
    kept = {lease.number for lease in await store.leases_in([LeaseState.RESERVED], after=LeaseNumber(0), limit=1_000_000)}
    await store.close()
    assert done == kept
    assert not refused & kept


@pytest.mark.parametrize("after", [1, 40, 333])
async def test_promise_9_killed_writer_loses_nothing_acknowledged(
    after: int, directory: Path, clock: Any, master_key: bytes
) -> None:
    """After SIGKILL in the middle of writing, every acknowledged write is there and the store opens."""
    process = await run_writer(directory, 0)
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(after)]
    os.kill(process.pid, signal.SIGKILL)
    # Acknowledgements that were under way when it was killed count as well.
    rest, _ = await process.communicate()
    acknowledged = {int(line.split()[1]) for line in [*lines, *rest.splitlines(keepends=True)] if line.endswith(b"\n")}
    store = await SqliteStore.open(directory, master_key, clock)
    kept = {lease.number for lease in await store.leases_in([LeaseState.RESERVED], after=LeaseNumber(0), limit=1_000_000)}
    (token,) = await store.tokens(after=0, limit=9)
    await store.end_tokens([token.number], children=TokenEnd.WITH_CHILDREN)
    await store.close()
    assert len(acknowledged) >= after
    assert acknowledged <= kept


async def test_a_scan_sees_one_moment(store: SqliteStore) -> None:
    """Of a scan's statements the later ones don't see what was committed after the first: nothing slips between two of them."""
    begun, written = threading.Event(), threading.Event()

    def twice(db: sqlite3.Connection) -> tuple[int, int]:
        (before,) = db.execute("SELECT count(*) FROM document").fetchone()
        begun.set()
        assert written.wait(30)
        (after,) = db.execute("SELECT count(*) FROM document").fetchone()
        return before, after

    scan = asyncio.create_task(store._reader.scan(twice))
    await asyncio.to_thread(begun.wait, 30)
    await store.put_document("kind", "name", b"{}")
    written.set()
    assert await scan == (0, 0)
    assert len(await store.changes_since(0)) == 1
