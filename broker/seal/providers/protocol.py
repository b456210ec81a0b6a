"""What a key provider promises."""

from __future__ import annotations

from typing import Protocol


class KeyProvider(Protocol):
    """Gives the master key, once, at start."""

    def master_key(self) -> bytes:
        """32 bytes. Raises KeyUnusable, saying what is wrong and what to do; its text holds nothing of the key."""
        ...
