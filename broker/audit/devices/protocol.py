"""What a device for audit lines promises."""

from __future__ import annotations

from typing import BinaryIO, Protocol


class AuditDevice(Protocol):
    """Takes bytes at its end and makes them durable. One thread alone calls it, and it never waits for anything but the device.

    Every method raises `OSError` when the device does not do it.
    """

    def open(self) -> None:
        """Opens what stands at the device's place now, and makes it where nothing does; then it is durable there."""
        ...

    def reader(self) -> BinaryIO:
        """A seekable reader at the beginning of what the open device holds, for the caller to close; empty if it can't be read."""
        ...

    def stale(self) -> bool:
        """Whether somebody else deleted or touched it since the last `flush`, so that it must be looked at anew."""
        ...

    def write(self, data: bytes) -> None:
        """Appends all of `data`. Not durable yet; after an `OSError` some of it may be there."""
        ...

    def flush(self) -> None:
        """Makes what was written durable."""
        ...

    def take_back(self) -> None:
        """Removes everything written since the last `flush` that succeeded."""
        ...

    def close(self) -> None:
        """Lets go of it; does nothing when it is not open."""
        ...
