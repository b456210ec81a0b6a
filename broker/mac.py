"""HMAC-SHA256 under a key that is set up once."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC


class Mac:
    """Authenticates short texts.

    `hmac.digest` of the standard library sets up the key each time. It also lets go of the interpreter, which a busy event loop gets
    back only when the thread that took it waits for something.
    """

    __slots__ = ("_begun",)

    def __init__(self, key: bytes) -> None:
        self._begun = HMAC(key, SHA256())

    def digest(self, data: bytes) -> bytes:
        """32 bytes that nobody without the key can make for `data`."""
        mac = self._begun.copy()
        mac.update(data)
        return mac.finalize()
