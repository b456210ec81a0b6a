"""The directory of the store.

    store.lock      locked (flock(2)) by the broker that has the store open, and its process id
    store.db        the SQLite database, with store.db-wal and store.db-shm beside it while it is open

The lock is a file of its own: closing any descriptor of the database file would drop SQLite's own locks on it (fcntl(2),
"Advisory record locking"), so nothing here opens that file while SQLite has it open.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from broker.errors import StoreDamaged, StoreInUse, StoreUnavailable
from broker.store.sqlite.connection import PAGE_BYTES

DATABASE = "store.db"
_LOCK = "store.lock"
_DRAFT = f"{DATABASE}.new"
_SQLITE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")


class DirectoryLock:
    """The right to use a store directory, until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """Takes the lock. Raises StoreInUse, which names the process that has it, and StoreUnavailable."""
        try:
            self._descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as failure:
            raise StoreUnavailable(f"the store's lock in {directory} can't be made ({failure.strerror})") from failure
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StoreInUse(
                f"another broker (process {holder or 'unknown'}) has the store {directory} open: "
                "stop it, or give this one a store directory of its own"
            ) from failure
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Gives it up; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OpenFiles:
    """Where the open database and its log stood when they were first looked at; from then on, whether they still do.

    SQLite goes on with a file that was moved or removed, and all that it writes is lost with the process
    (https://www.sqlite.org/howtocorrupt.html, section 4). Belongs to one thread.
    """

    def __init__(self, database: Path) -> None:
        database = database.absolute()
        self._paths = (database, database.with_name(f"{database.name}-wal"))
        self._known: list[tuple[int, int]] = []

    def check(self) -> None:
        """Raises StoreUnavailable while another file, or none, has the name of one of them."""
        try:
            found = [(status.st_dev, status.st_ino) for status in map(os.stat, self._paths)]
        except OSError:
            found = []
        if not found or self._known not in ([], found):
            raise StoreUnavailable(
                f"the store file {self._paths[0]} or its log was moved, removed or replaced under the running broker, so nothing was done: "
                "put it back, or stop the broker and restore the store"
            )
        self._known = found


def make_directory(directory: Path) -> None:
    """Makes the directory with mode 0700, or checks one that is there. Raises StoreUnavailable when others may write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as failure:
        raise StoreUnavailable(f"the store directory {directory} can't be used ({failure.strerror})") from failure
    if mode & 0o022:
        raise StoreUnavailable(
            f"the store directory {directory} may be written by others (mode {mode & 0o777:04o}): chmod 700 it"
        )


def start_draft(directory: Path) -> Path:
    """An empty file, mode 0600, in which a new store is made; what a crash left of an earlier one is removed.

    Raises StoreDamaged when the database is missing though its log is there, and StoreUnavailable.
    """
    if (directory / f"{DATABASE}-wal").exists():
        raise StoreDamaged(f"{directory / DATABASE} is missing, but its log is there: restore the store from its last copy")
    draft = directory / _DRAFT
    try:
        for leftover in (draft, directory / f"{_DRAFT}-journal"):
            leftover.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as failure:
        raise StoreUnavailable(f"no store can be made in {directory} ({failure.strerror})") from failure
    return draft


def publish(draft: Path) -> None:
    """Gives a finished draft the name of the database, durably. Raises StoreUnavailable."""
    try:
        draft.rename(draft.with_name(DATABASE))
        sync_directory(draft.parent)
    except OSError as failure:
        raise StoreUnavailable(f"no store can be made in {draft.parent} ({failure.strerror})") from failure


def keep_private(directory: Path) -> None:
    """Takes the rights of others from the database, should it have been copied here with some.

    SQLite gives its log the mode of the database (https://www.sqlite.org/src/file/src/os_unix.c, findCreateFileMode).
    """
    for name in _SQLITE_FILES:
        if (directory / name).exists():
            (directory / name).chmod(0o600)


def check_length(directory: Path) -> None:
    """Raises StoreDamaged when the database ends within a page.

    SQLite itself refuses a file that lacks whole pages, but reads zeros where a page is cut. With a log beside it a cut page
    is what a crash leaves, and is written again from the log.
    """
    size, log = (directory / DATABASE).stat().st_size, directory / f"{DATABASE}-wal"
    if size % PAGE_BYTES and not (log.exists() and log.stat().st_size):
        raise StoreDamaged(f"the store file {directory / DATABASE} is cut off: restore the store from its last copy")


def sync_directory(directory: Path) -> None:
    """The names in a directory are on disc when this returns."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
