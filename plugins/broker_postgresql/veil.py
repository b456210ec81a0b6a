"""Secrets on their way to the server, out of reach of its log.

A server that logs every statement logs the parameters of prepared ones too, and only a superuser may turn that off for a session. So a
secret travels veiled. The server makes a key for each connection and tells it in a row: rows are what no log holds. Both sides draw the
same stream of pads from it, SHA-256 of key and counter, no pad is used twice, and the server takes them off by XOR, with functions that
every PostgreSQL from 13 on has. In the statements that carry a secret a placeholder stands for it, so they stay readable where they are
logged.

This hides from logs. From whoever reads the traffic TLS hides; from a superuser, who can read what the server keeps, nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import asyncpg

SETTING = "broker.key"
"""Where the server keeps the key, for the life of the connection. What resets all settings has to carry it over."""
NEW_KEY = (
    f"SELECT set_config('{SETTING}',"
    " encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex'), false)"
)
_BLOCK_BYTES = 32
_MARK_CHARS = 24
_BETWEEN = "\n"
"""Stands in no password that is made here, and in no verifier."""


@dataclass(frozen=True, slots=True)
class Veiled:
    """Secrets under their pads, with the number of the first pad and how many they are."""

    bits: asyncpg.BitString
    first: int
    pads: int


@dataclass(slots=True)
class Veil:
    """One connection's key, and how many pads were drawn from it."""

    key: bytes = b""
    drawn: int = 0

    def take(self, key: str) -> None:
        """Starts anew with what `NEW_KEY` answered."""
        self.key, self.drawn = bytes.fromhex(key), 0

    def mark(self) -> str:
        """A placeholder that nobody could have guessed."""
        self.drawn += 1
        return f"[{self._pad(self.drawn - 1).hex()[:_MARK_CHARS]}]"

    def cover(self, secrets: Sequence[str]) -> Veiled:
        """The secrets under pads that are used for nothing else, whatever becomes of the call."""
        plain = _BETWEEN.join(secrets).encode()
        first, count = self.drawn, max(1, -(-len(plain) // _BLOCK_BYTES))
        self.drawn += count
        pads = b"".join([self._pad(number) for number in range(first, self.drawn)])
        covered = int.from_bytes(plain, "big") ^ int.from_bytes(pads[: len(plain)], "big")
        return Veiled(asyncpg.BitString.frombytes(covered.to_bytes(len(plain), "big")), first, count)

    def _pad(self, number: int) -> bytes:
        return sha256(self.key + number.to_bytes(8, "big")).digest()
