"""How the file is opened, and what SQLite's errors mean to a caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.errors import BrokerError, OutcomeUnknown, StateConflict, StoreDamaged, StoreUnavailable

LEAST_SQLITE = (3, 37, 0)
"""The first version with STRICT tables."""
PAGE_BYTES = 4096
_STATEMENTS_CACHED = 256
_BUSY_S = 5.0
_COMMON = ("PRAGMA temp_store = MEMORY", "PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")
_FOR_WRITING = (
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA cache_size = -8192",
    # A log that once grew large is cut at the next checkpoint.
    "PRAGMA journal_size_limit = 67108864",
)
_FOR_READING = ("PRAGMA query_only = ON", "PRAGMA cache_size = -4096")


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The one connection that writes: flushed at each commit, free pages overwritten, temporary data in memory."""
    return _open(path, _FOR_WRITING)


def use_log(db: sqlite3.Connection) -> None:
    """Switches the file to a write-ahead log, if it is not: readers then never wait. Raises StoreUnavailable."""
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable("the file system of the store can't hold SQLite's write-ahead log: use a local one")


def open_for_making(path: Path) -> sqlite3.Connection:
    """A connection to a file that nobody else knows yet: flushed at its commit, and no log beside it."""
    return _open(path, (f"PRAGMA page_size = {PAGE_BYTES}", "PRAGMA synchronous = FULL"))


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that can't write and never waits for the one that does."""
    return _open(path, _FOR_READING)


@contextmanager
def translated() -> Iterator[None]:
    """Raises SQLite's errors as the project's own."""
    try:
        yield
    except sqlite3.Error as failure:
        raise store_error(failure) from failure


def store_error(failure: Exception) -> BrokerError:
    """The project's error for one of SQLite's (https://www.sqlite.org/rescode.html)."""
    name = getattr(failure, "sqlite_errorname", None) or type(failure).__name__
    match getattr(failure, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreDamaged(f"the store file is damaged ({name}): stop the broker and restore the store from its last copy")
        case sqlite3.SQLITE_CONSTRAINT:
            return StateConflict(f"the store refused an impossible row ({failure})")
        case sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"the store can't be written ({name}), so nothing was done: free space on its disc")
        case _:
            return StoreUnavailable(f"the store can't be read or written ({name}: {failure}): see its disc; nothing was done")


def commit_error(failure: Exception) -> BrokerError:
    """The error of a whole transaction that failed; of ours, one that says the same.

    Where the flush of its commit failed, what was written may come back after a crash, and only then.
    """
    if getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC:
        return OutcomeUnknown("the disc of the store did not confirm a write (SQLITE_IOERR_FSYNC): it may have happened")
    if isinstance(failure, StoreUnavailable):
        return StoreUnavailable(str(failure))
    return store_error(failure)


def _open(path: Path, pragmas: tuple[str, ...]) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_S,
        # One thread at a time uses it, but not always the one that opened it.
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
    )
    try:
        for pragma in (*_COMMON, *pragmas):
            db.execute(pragma)
    except sqlite3.Error:
        db.close()
        raise
    return db
