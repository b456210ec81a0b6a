"""A master key as one line of text: 32 bytes in base64 (44 characters) or hexadecimal (64)."""

from __future__ import annotations

import base64
import binascii

from broker.errors import KeyUnusable
from broker.seal.keyring import KEY_BYTES
from broker.secret import random_bytes

MOST_CHARS = 256
"""More than this is no key; so much is read at most."""


def key_from_text(text: str, origin: str) -> bytes:
    """The key that `text` holds; white space around it is ignored. Raises KeyUnusable, which names `origin` only."""
    line = text.strip()
    for decode in (bytes.fromhex, _from_base64):
        try:
            key = decode(line)
        except (ValueError, binascii.Error):
            continue
        if len(key) == KEY_BYTES:
            return key
    raise KeyUnusable(f"{origin} does not hold a master key: it must be 32 random bytes as 64 hexadecimal digits or in base64")


def new_key_text() -> str:
    """A new random key in base64, with the newline that ends the file."""
    return base64.b64encode(random_bytes(KEY_BYTES)).decode() + "\n"


def _from_base64(line: str) -> bytes:
    return base64.b64decode(line, validate=True)
