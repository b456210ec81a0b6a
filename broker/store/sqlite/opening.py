"""Opening a store directory: locked, checked, brought to the newest schema, keys unwrapped; or else refused with the reason."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.clock import Clock
from broker.errors import StoreDamaged, StoreUnavailable
from broker.store.sqlite.connection import LEAST_SQLITE, open_for_writing, translated
from broker.store.sqlite.files import DirectoryLock, make_database_file, make_directory
from broker.store.sqlite.schema import is_new, migrate
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
        path = make_database_file(directory)
        with translated():
            db = open_for_writing(path)
            try:
                return Opened(path, lock, db, _made_ready(db, master_key, clock))
            except BaseException:
                db.close()
                raise
    except BaseException:
        lock.release()
        raise


def _made_ready(db: sqlite3.Connection, master_key: bytes, clock: Clock) -> Vitals:
    new = is_new(db)
    if not new:
        _check(db)
    db.execute("BEGIN IMMEDIATE")
    migrate(db, clock.now_ms())
    vitals = Vitals.create(db, master_key) if new else Vitals.load(db, master_key)
    clock.raise_to(vitals.clock_ms)
    db.execute("COMMIT")
    return vitals


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
