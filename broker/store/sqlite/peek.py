"""A look at the keys and the audit head of a store, beside the broker that has it open."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.errors import StoreUnavailable
from broker.seal.keyring import Keyring
from broker.store.sqlite.connection import open_for_reading, translated
from broker.store.sqlite.files import DATABASE
from broker.store.sqlite.vitals import Vitals
from broker.store.words import AuditHead


@dataclass(frozen=True, slots=True)
class Peeked:
    """What an auditor needs of a store."""

    keyring: Keyring
    head: AuditHead | None
    """The newest audit entry that the store knows to be on disc."""


def exists(directory: Path) -> bool:
    """Whether there is a store in the directory."""
    return (directory / DATABASE).exists()


def peek(directory: Path, master_key: bytes) -> Peeked:
    """Reads a store without changing it. Raises `StoreUnavailable`, `StoreDamaged`, `KeyUnusable`, `SealBroken`."""
    if not exists(directory):
        raise StoreUnavailable(f"there is no store in {directory}: name the state directory of the broker")
    with translated(), closing(open_for_reading(directory / DATABASE)) as db:
        vitals = Vitals.load(db, master_key)
    return Peeked(vitals.keyring, vitals.head)
