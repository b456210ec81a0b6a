"""Standard output, for a container whose runtime keeps the lines."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

_STDOUT = 1


class StdoutDevice:
    """Meets `AuditDevice` without its durability: a line is handed to whoever reads the pipe, and that is all that is known.

    Nothing can be read or taken back, so after a start the chain goes on from the store's head.
    """

    def __init__(self) -> None:
        self._torn = False

    def __str__(self) -> str:
        return "standard output"

    def open(self) -> None:
        """See `AuditDevice.open`; it is open already."""

    def reader(self) -> BinaryIO:
        """See `AuditDevice.reader`."""
        return io.BytesIO()

    def stale(self) -> bool:
        """See `AuditDevice.stale`."""
        return False

    def write(self, data: bytes) -> None:
        """See `AuditDevice.write`."""
        rest = memoryview(b"\n" + data if self._torn else data)
        self._torn = True
        while rest:
            rest = rest[os.write(_STDOUT, rest) :]
        self._torn = False

    def flush(self) -> None:
        """Promises nothing: what was written is with the reader already."""

    def take_back(self) -> None:
        """Takes nothing back, since what was written is with the reader; the next write starts a line of its own."""

    def close(self) -> None:
        """See `AuditDevice.close`; standard output stays open."""
