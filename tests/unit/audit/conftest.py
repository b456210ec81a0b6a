"""What the tests of the audit room share: a device in memory that fails on demand, a clock that stands, and entries."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable
from typing import BinaryIO

import pytest

KEY = b"k" * 32


class MemoryDevice:
    """Meets `AuditDevice`; counts what is asked of it, and fails where a test says so."""

    def __init__(self) -> None:
        self.content = b""
        self.flushed = 0
        self.calls: list[str] = []
        self.space: int | None = None
        """Bytes that still fit; None: no limit."""
        self.fails: set[str] = set()
        """Methods that raise EIO."""
        self.gate = threading.Event()
        """While cleared, `write` waits."""
        self.gate.set()
        self.entered = threading.Event()
        """Set once a `write` has begun."""
        self.rotated: bytes | None = None
        """What the next `open` finds, where a file was put in the place of the open one."""
        self.shelf: list[bytes] = []
        """Files that were rotated away."""

    def __str__(self) -> str:
        return "memory"

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise OSError(errno.EIO, "Input/output error")

    def open(self) -> None:
        self._called("open")
        if self.rotated is not None:
            self.shelf.append(self.content)
            self.content, self.rotated = self.rotated, None
        self.flushed = len(self.content)

    def reader(self) -> BinaryIO:
        self._called("reader")
        return io.BytesIO(self.content)

    def stale(self) -> bool:
        return self.flushed != len(self.content)

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        self._called("write")
        fits = len(data) if self.space is None else min(self.space, len(data))
        self.content += data[:fits]
        if self.space is not None:
            self.space -= fits
        if fits < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        self._called("flush")
        self.flushed = len(self.content)

    def take_back(self) -> None:
        self._called("take_back")
        if self.space is not None:
            self.space += len(self.content) - self.flushed
        self.content = self.content[: self.flushed]

    def close(self) -> None:
        self._called("close")


class StandingClock:
    """A clock that shows one moment."""

    def now_ms(self) -> int:
        return 1_790_000_000_123

    def wall_ms(self) -> int:
        return self.now_ms()

    def raise_to(self, floor_ms: int) -> None:
        raise AssertionError(floor_ms)


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice()


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def entry() -> Callable[[object], bytes]:
    """Makes an entry that holds a number or text, so that it is known again."""
    return lambda mark: b'{"type":"request","mark":"%b"}' % str(mark).encode()
