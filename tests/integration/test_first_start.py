"""What the first start leaves on disc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker import daemon
from broker.config import parse
from broker.seal.providers.memory import MemoryKey


async def test_the_root_token_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and directory entry are synced, in this order, before the store holds the token's hash."""
    synced: list[Path] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    state = tmp_path / "state"
    config = parse({"server": {"address": "127.0.0.1:0"}, "store": {"directory": str(state)}})
    running = await daemon.start(config, daemon.Seams(key=MemoryKey()))
    await running.stop()
    token_at = synced.index(state / daemon.ROOT_TOKEN_FILE)
    assert synced[token_at + 1] == state
