"""The store of a broker that does not run: what is in it, and time that passes for it."""

from __future__ import annotations

from pathlib import Path

from broker.clock import SystemClock
from broker.model import Lease, LeaseNumber, LeaseState
from broker.seal.providers import FileKey
from broker.store.sqlite.store import SqliteStore
from broker.testing.clock import ManualClock

_MOST = 1_000


async def stored_leases(state: Path) -> list[Lease]:
    """The first thousand leases in the store of that state directory, gone ones too."""
    store = await SqliteStore.open(state, _master_key(state), SystemClock())
    try:
        return list(await store.leases_in(list(LeaseState), after=LeaseNumber(0), limit=_MOST))
    finally:
        await store.close()


async def pass_time(state: Path, by_ms: int) -> None:
    """Lets time pass: the store then knows of a later moment, and time never goes back."""
    store = await SqliteStore.open(state, _master_key(state), SystemClock())
    now_ms = store.now_ms()
    await store.close()
    store = await SqliteStore.open(state, _master_key(state), ManualClock(now_ms + by_ms))
    await store.close()


def _master_key(state: Path) -> bytes:
    return FileKey(state / "master.key").master_key()
