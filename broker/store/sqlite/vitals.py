"""What the store keeps about itself, in the table `vital`: keyring, the broker's id, the clock, the audit head.

    keyring     wrapped by the master key (broker.seal.keyring)
    broker      8 letters and digits
    clock       the latest broker time that a commit saw, in Unix milliseconds (8, big-endian)
    audit       sequence (8, big-endian) | MAC (32)

All but the keyring are sealed under the keyring. They are written along with other people's commits.
"""

from __future__ import annotations

import sqlite3
import string
from typing import NamedTuple

from broker.errors import StoreDamaged
from broker.seal.keyring import Keyring
from broker.secret import random_text
from broker.store.sqlite.cipher import Cipher
from broker.store.sqlite.queries import SQL
from broker.store.words import AuditHead

_CLOCK_EVERY_MS = 1_000
_BROKER_ID_CHARS = 8


class Kept(NamedTuple):
    """What a commit carries, noted as saved once it has succeeded."""

    head: AuditHead | None
    clock_ms: int
    changes: int
    keyring: bool


class Vitals:
    """The newest of each, and what of it still has to be written; all methods but `head` and `confirm` belong to one thread."""

    def __init__(self, keyring: Keyring, broker_id: str, clock_ms: int, head: AuditHead | None) -> None:
        self.keyring = keyring
        self.cipher = Cipher(keyring)
        self.broker_id = broker_id
        self.clock_ms = clock_ms
        self.head = head
        self._saved_head = head
        self._saved_ms = 0
        self._saved_changes = 0

    @classmethod
    def create(cls, db: sqlite3.Connection, master_key: bytes) -> Vitals:
        """New ones, written inside the caller's transaction."""
        vitals = cls(Keyring.new(master_key), random_text(_BROKER_ID_CHARS, string.ascii_lowercase + string.digits), 0, None)
        _keep(db, "keyring", vitals.keyring.wrapped())
        _keep(db, "broker", vitals.cipher.seal_vital("broker", vitals.broker_id.encode()))
        return vitals

    @classmethod
    def load(cls, db: sqlite3.Connection, master_key: bytes) -> Vitals:
        """Those of the file. Raises KeyUnusable, SealBroken or StoreDamaged."""
        wrapped = _kept(db, "keyring")
        if wrapped is None:
            raise StoreDamaged("the store has lost its keyring: restore the store from its last copy")
        keyring = Keyring.unwrap(wrapped, master_key)
        cipher = Cipher(keyring)
        clear = {name: cipher.open_vital(name, sealed) for name in ("broker", "clock", "audit") if (sealed := _kept(db, name))}
        audit = clear.get("audit")
        return cls(
            keyring,
            clear.get("broker", b"").decode(),
            int.from_bytes(clear.get("clock", b""), "big"),
            None if audit is None else AuditHead(int.from_bytes(audit[:8], "big"), audit[8:]),
        )

    def confirm(self, head: AuditHead) -> None:
        """Remembers a head unless a newer one is known."""
        if self.head is None or head.sequence > self.head.sequence:
            self.head = head

    def insist(self) -> None:
        """The next commit writes the clock, however lately it was written and even if nothing else was."""
        self._saved_ms = self._saved_changes = -1

    def before_commit(self, db: sqlite3.Connection, now_ms: int) -> Kept:
        """Writes what is new into the transaction; the clock at most once a second, and not for its own sake."""
        head, keyring = self.head, self.keyring.unsaved()
        clock_ms = self._saved_ms
        if db.total_changes > self._saved_changes and now_ms - clock_ms >= _CLOCK_EVERY_MS:
            clock_ms = now_ms
            _keep(db, "clock", self.cipher.seal_vital("clock", now_ms.to_bytes(8, "big")))
        if head is not None and head is not self._saved_head:
            _keep(db, "audit", self.cipher.seal_vital("audit", head.sequence.to_bytes(8, "big") + head.mac))
        if keyring:
            _keep(db, "keyring", self.keyring.wrapped())
        return Kept(head, clock_ms, db.total_changes, keyring)

    def after_commit(self, kept: Kept) -> None:
        """What `before_commit` wrote is durable."""
        self._saved_head, self._saved_ms, self._saved_changes = kept.head, kept.clock_ms, kept.changes
        if kept.keyring:
            self.keyring.saved()


def _keep(db: sqlite3.Connection, name: str, sealed: bytes) -> None:
    db.execute(SQL["keep_vital"], {"name": name, "sealed": sealed})


def _kept(db: sqlite3.Connection, name: str) -> bytes | None:
    row = db.execute(SQL["vital"], {"name": name}).fetchone()
    return None if row is None else row[0]
