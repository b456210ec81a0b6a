"""Where something may be put between the rooms from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.audit.devices.protocol import AuditDevice
from broker.clock import Clock, SystemClock
from broker.engines.protocol import Engine
from broker.seal.providers import KeyProvider
from broker.secret import Secret
from broker.store.protocol import Store


def _same_store(store: Store) -> Store:
    return store


def _same_engine(engine: Engine) -> Engine:
    return engine


def _same_device(device: AuditDevice) -> AuditDevice:
    return device


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What may be put between the rooms from outside; a test plants faults here. The defaults change nothing."""

    clock: Callable[[], Clock] = SystemClock
    store: Callable[[Store], Store] = _same_store
    engine: Callable[[Engine], Engine] = _same_engine
    device: Callable[[AuditDevice], AuditDevice] = _same_device
    key: KeyProvider | None = None
    """Instead of the configured one."""
    keep_root_token: Callable[[Secret], None] | None = None
    """Instead of writing it to a file."""
