"""Opening a store directory: locked, checked, brought to the newest schema, keys unwrapped; or else refused with the reason."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.clock import Clock
from broker.errors import StoreDamaged, StoreUnavailable
from broker.store.sqlite.connection import LEAST_SQLITE, open_for_making, open_for_writing, translated, use_log
from broker.store.sqlite.due import release_claims
from broker.store.sqlite.files import DATABASE, DirectoryLock, check_length, keep_private, make_directory, publish, start_draft
from broker.store.sqlite.schema import check_origin, migrate
from broker.store.sqlite.vitals import Vitals

_CHECKED_WHOLE_BYTES = 16 << 20
"""Up to this size the whole file is checked at start (some 50 ms)."""
_ALWAYS_CHECKED = ("vital", "counter", "path", "document", "schema_version")


@dataclass(frozen=True, slots=True)
class Opened:
    """An open store directory."""

    path: Path
    lock: DirectoryLock
    db: sqlite3.Connection
    vitals: Vitals


def open_directory(directory: Path, master_key: bytes, clock: Clock) -> Opened:
    """Opens the store there, made if the directory holds none.

    Raises:
        StoreInUse: another broker has it open.
        StoreDamaged: the file is damaged, not a store, or from a newer version.
        KeyUnusable, SealBroken: the master key is another one; the keyring is damaged.
        StoreUnavailable: the directory can't be used.
    """
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        raise StoreUnavailable(
            f"SQLite {sqlite3.sqlite_version} is too old for the store: it needs {LEAST_SQLITE[0]}.{LEAST_SQLITE[1]}"
        )
    make_directory(directory)
    lock = DirectoryLock(directory)
    try:
        with translated():
            if not (directory / DATABASE).exists():
                _make(directory, master_key, clock.now_ms())
            keep_private(directory)
            check_length(directory)
            return _open(directory / DATABASE, lock, master_key, clock)
    except BaseException:
        lock.release()
        raise


def _make(directory: Path, master_key: bytes, now_ms: int) -> None:
    """Makes a store that appears under its name whole or not at all, so that an empty file can only be a damaged one."""
    draft = start_draft(directory)
    with closing(open_for_making(draft)) as db:
        db.execute("BEGIN")
        migrate(db, now_ms)
        Vitals.create(db, master_key)
        db.execute("COMMIT")
    publish(draft)


def _open(path: Path, lock: DirectoryLock, master_key: bytes, clock: Clock) -> Opened:
    db = open_for_writing(path)
    try:
        check_origin(db)
        _check(db)
        use_log(db)
        db.execute("BEGIN IMMEDIATE")
        migrate(db, clock.now_ms())
        vitals = Vitals.load(db, master_key)
        # The lock says that whoever claimed anything is dead.
        release_claims(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    clock.raise_to(vitals.clock_ms)
    return Opened(path, lock, db, vitals)


def _check(db: sqlite3.Connection) -> None:
    """Reads through a small file, and of a large one through the tables that are small and that everything hangs on.

    A million leases take seconds to read through. SQLite itself refuses a file that is cut; and of what bits may flip in the
    rows of leases and tokens, sealed values do not open, and a clear column can at worst move or lose that one lease.
    """
    (pages,), (page_bytes,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
    whole = pages * page_bytes <= _CHECKED_WHOLE_BYTES
    for check in ["quick_check(1)"] if whole else [f"quick_check('{table}')" for table in _ALWAYS_CHECKED]:
        with closing(db.execute(f"PRAGMA {check}")) as answer:
            (finding,) = answer.fetchone()
        if finding != "ok":
            raise StoreDamaged(f"the store file is damaged ({finding}): restore the store from its last copy")
