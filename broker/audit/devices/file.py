"""A file that only grows."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CLOSED = -1


class FileDevice:
    """Meets `AuditDevice` with a regular file of mode 0600, appended to and synchronised with fdatasync(2).

    Refused, with an `OSError` that says why: a symlink, anything but a regular file, a file that its group or everybody may
    write, and one that another process is writing (flock(2)).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _CLOSED
        self._flushed_size = 0
        self._written = 0
        """Bytes since the last flush."""

    def __str__(self) -> str:
        return str(self._path)

    def open(self) -> None:
        """See `AuditDevice.open`; a new file's directory entry is durable when this returns."""
        try:
            self._fd = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            _sync_directory(self._path.parent)
        except FileExistsError:
            self._fd = os.open(self._path, _FLAGS)
        try:
            self._refuse_unsafe()
            self._lock()
        except OSError:
            self.close()
            raise
        self._flushed_size, self._written = os.fstat(self._fd).st_size, 0

    def reader(self) -> BinaryIO:
        """See `AuditDevice.reader`. It shares the file position with the writer, which O_APPEND makes harmless."""
        stream = os.fdopen(os.dup(self._fd), "rb")
        stream.seek(0)
        return stream

    def stale(self) -> bool:
        """See `AuditDevice.stale`. A renamed file is not stale: rotation ends with `SIGHUP`, and until then it is the log."""
        found = os.fstat(self._fd)
        return found.st_nlink == 0 or found.st_size != self._flushed_size

    def write(self, data: bytes) -> None:
        """See `AuditDevice.write`."""
        rest = memoryview(data)
        while rest:
            written = os.write(self._fd, rest)
            if written == 0:
                raise OSError(errno.EIO, "the file takes no more bytes")
            rest = rest[written:]
            self._written += written

    def flush(self) -> None:
        """See `AuditDevice.flush`."""
        os.fdatasync(self._fd)
        # Not what the file has by now: what somebody else did to it meanwhile would pass for ours.
        self._flushed_size, self._written = self._flushed_size + self._written, 0

    def take_back(self) -> None:
        """See `AuditDevice.take_back`."""
        # A file that somebody truncated meanwhile must not grow again: it would be filled with zeros.
        if os.fstat(self._fd).st_size > self._flushed_size:
            os.ftruncate(self._fd, self._flushed_size)
        self._written = 0

    def close(self) -> None:
        """See `AuditDevice.close`."""
        if self._fd != _CLOSED:
            fd, self._fd = self._fd, _CLOSED
            os.close(fd)

    def _refuse_unsafe(self) -> None:
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if mode & _OTHERS_MAY_WRITE:
            raise PermissionError(errno.EPERM, "its group or everybody may write it; run: chmod go-w on it")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EBUSY, "another process is writing it; stop that one or name another file") from error


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
