"""A master key that lives no longer than the process, for trying the broker out."""

from __future__ import annotations

from broker.seal.keyring import KEY_BYTES
from broker.secret import random_bytes


class MemoryKey:
    """A random key, made once; a store that it sealed can't be opened by the next process."""

    def __init__(self) -> None:
        self._key = random_bytes(KEY_BYTES)

    def master_key(self) -> bytes:
        """See `KeyProvider.master_key`."""
        return self._key
