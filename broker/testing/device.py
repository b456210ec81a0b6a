"""An audit device whose disc a test takes away."""

from __future__ import annotations

import errno
from typing import BinaryIO

from broker.audit.devices.protocol import AuditDevice

FOR_EVER = 1 << 60


class BreakableDevice:
    """Meets `AuditDevice` by the device inside; writing fails once `flushes_left` is used up: 0 breaks it, `FOR_EVER` mends it."""

    def __init__(self, inner: AuditDevice) -> None:
        self._inner = inner
        self.flushes_left = FOR_EVER

    def __str__(self) -> str:
        return str(self._inner)

    def open(self) -> None:
        """See `AuditDevice.open`."""
        self._inner.open()

    def reader(self) -> BinaryIO:
        """See `AuditDevice.reader`."""
        return self._inner.reader()

    def stale(self) -> bool:
        """See `AuditDevice.stale`."""
        return self._inner.stale()

    def write(self, data: bytes) -> None:
        """See `AuditDevice.write`."""
        if self.flushes_left <= 0:
            raise OSError(errno.EIO, "Input/output error")
        self._inner.write(data)

    def flush(self) -> None:
        """See `AuditDevice.flush`."""
        self._inner.flush()
        self.flushes_left -= 1

    def take_back(self) -> None:
        """See `AuditDevice.take_back`."""
        self._inner.take_back()

    def close(self) -> None:
        """See `AuditDevice.close`."""
        self._inner.close()
