"""A broker whose audit log is rotated while it starts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import daemon
from broker.config import parse
from broker.seal.providers.memory import MemoryKey
from broker.testing.broker import until


class Rotated:
    """A device whose file is renamed as soon as it is open, followed by SIGHUP, as a rotation does."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner = inner
        self._path = path
        self._old = path.with_suffix(".1")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self) -> None:
        self._inner.open()
        if not self._old.exists():
            self._path.rename(self._old)
            os.kill(os.getpid(), signal.SIGHUP)


@pytest.fixture(autouse=True)
def _spared() -> Iterator[None]:
    """What a broker does not take must not end the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


async def test_log_that_is_rotated_during_the_start_is_reopened(tmp_path: Path) -> None:
    """The start goes on, and once it is through entries go to the new file."""
    log = tmp_path / "audit.log"
    config = parse(
        {"server": {"address": "127.0.0.1:0"}, "store": {"directory": str(tmp_path / "state")}, "audit": {"path": str(log)}}
    )
    seams = daemon.Seams(key=MemoryKey(), device=lambda device: Rotated(device, log))
    serving = asyncio.create_task(daemon.serve(config, seams))

    async def reopened() -> bool:
        return log.exists() or serving.done()

    await until(reopened)
    assert log.exists()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
