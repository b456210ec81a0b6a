"""The schema's version, and the migrations that raise it: `migrations/NNNN_<what>.sql`, each run once, in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import resources

from broker.errors import StoreDamaged

_APPLICATION_ID = 0x42524B52
"""`BRKR`, in the file's header: tells a store from any other SQLite file (https://www.sqlite.org/fileformat.html 1.3.2)."""
_VERSION_TABLE = "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT"


def migrations() -> dict[int, str]:
    """The scripts by the version that they lead to."""
    scripts = (file for file in resources.files(__package__).joinpath("migrations").iterdir() if file.name.endswith(".sql"))
    return dict(sorted((int(file.name[:4]), file.read_text(encoding="utf-8")) for file in scripts))


def check_origin(db: sqlite3.Connection) -> None:
    """Raises StoreDamaged when the file holds nothing, or is an SQLite file of something else."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if not tables:
        raise StoreDamaged("the store file is empty: restore the store from its last copy")
    if application != _APPLICATION_ID:
        raise StoreDamaged("the store file is an SQLite database, but not a store of this program: give another directory")


def migrate(db: sqlite3.Connection, now_ms: int) -> None:
    """Raises the schema to the newest version, inside the caller's transaction.

    Raises:
        StoreDamaged: a newer version of the program wrote the file.
    """
    known = migrations()
    reached = _version(db)
    if reached > max(known):
        raise StoreDamaged(
            f"the store was written by a newer version of the program (schema {reached}, known up to {max(known)}): "
            "install that version, or restore the store from before"
        )
    for version, script in known.items():
        if version > reached:
            for statement in _statements(script):
                db.execute(statement)
            db.execute("INSERT INTO schema_version (version, applied_ms) VALUES (?, ?)", (version, now_ms))


def _version(db: sqlite3.Connection) -> int:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(_VERSION_TABLE)
    (version,) = db.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """One statement at a time: sqlite3's `executescript` would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
