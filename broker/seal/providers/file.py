"""The master key in a file that its owner alone can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from broker.errors import KeyUnusable
from broker.seal.providers.text import MOST_CHARS, key_from_text, new_key_text


class FileKey:
    """Reads the key from `path`, a regular file closed to group and world."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def master_key(self) -> bytes:
        """See `KeyProvider.master_key`."""
        return key_from_text(_read_private(self._path), f"the key file {self._path}")


def create_key_file(path: Path) -> None:
    """Makes a new key file with mode 0600; file and directory entry are on disc when it returns.

    Raises:
        KeyUnusable: `path` exists already (it is left alone), or can't be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeyUnusable(f"the key file {path} exists already and was left alone: move it away if it is not in use") from None
    except OSError as failure:
        raise KeyUnusable(
            f"the key file {path} can't be made ({failure.strerror}): its directory must exist and be writable for the broker"
        ) from failure
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        # The mode given to open(2) is narrowed by the umask, never widened; this undoes a umask that takes the owner's bits.
        os.fchmod(file.fileno(), 0o600)
        file.write(new_key_text())
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path.parent)


def _read_private(path: Path) -> str:
    try:
        # Opened before it is looked at, so that what was checked is what is read; O_NONBLOCK so that a FIFO can't hang it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyUnusable(f"the key file {path} is missing: put back its copy; without it the store can't be opened") from None
    except OSError as failure:
        raise KeyUnusable(f"the key file {path} can't be read ({failure.strerror}): let the broker's user read it") from failure
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise KeyUnusable(f"the key file {path} is not a regular file: the master key must be in one")
        if facts.st_mode & 0o077:
            raise KeyUnusable(f"the key file {path} is open to others (mode {facts.st_mode & 0o777:04o}): chmod 600 it")
        return os.read(descriptor, MOST_CHARS + 1).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
