"""Tokens seen lately, so that a request costs no question to the store. A hint: what reserves a lease asks the store again."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from broker.audit.entry import Caller
from broker.model import Token, TokenNumber


class Known(Struct, frozen=True):
    """A token that was found, and what the audit log writes of it, made once."""

    token: Token
    caller: Caller


class _Entry(Struct, frozen=True):
    known: Known
    until_ms: int


class TokenCache:
    """Known tokens by the keyed hash of their text: at most `size`, each believed for `hold_ms`, the oldest dropped first."""

    def __init__(self, *, size: int, hold_ms: int) -> None:
        self._size = size
        self._hold_ms = hold_ms
        self._entries: dict[bytes, _Entry] = {}
        self._digests: dict[TokenNumber, bytes] = {}
        self.generation = 0
        """Raised by each `forget`. Read it before asking the store, and hand it to `put` with what the store said."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes, now_ms: int) -> Known | None:
        """The token with this hash, unless it is unknown, held for too long, or past its own end."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if now_ms >= entry.until_ms:
            self._drop(digest)
            return None
        return entry.known

    def put(self, digest: bytes, known: Known, now_ms: int, generation: int) -> None:
        """Remembers a token, unless one was forgotten since `generation`: then what the store said may be outdated."""
        if generation != self.generation:
            return
        self._drop(digest)
        if len(self._entries) >= self._size:
            self._drop(next(iter(self._entries)))
        end_ms = known.token.expires_ms
        until_ms = now_ms + self._hold_ms
        self._entries[digest] = _Entry(known, until_ms if end_ms is None else min(until_ms, end_ms))
        self._digests[known.token.number] = digest

    def forget(self, numbers: Iterable[TokenNumber]) -> None:
        """Drops these tokens, and outdates every answer that is on its way from the store."""
        self.generation += 1
        for number in numbers:
            digest = self._digests.get(number)
            if digest is not None:
                self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._digests.pop(entry.known.token.number, None)
