"""A value that does not print, and the randomness it is made from."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from functools import cache
from typing import NoReturn

_HIDDEN = "[secret]"


class Secret:
    """Text that prints nothing, formats nothing, pickles nothing and compares in constant time.

    `reveal()` is the one way to its text; look for that word to find each place where a secret travels on.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the wire, the database or the seal; never for a log, an error or a label."""
        return self._text

    def __repr__(self) -> str:
        return _HIDDEN

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return _HIDDEN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    # A hash would let a secret become a key of a mapping, where comparison is no longer constant in time.
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret can't be pickled or copied")


def random_bytes(count: int) -> bytes:
    """`count` bytes from the operating system's generator."""
    return secrets.token_bytes(count)


def random_below(limit: int) -> int:
    """A uniformly random integer in [0, limit)."""
    return secrets.randbelow(limit)


def random_fraction() -> float:
    """A uniformly random fraction in [0, 1)."""
    return random_below(1 << 53) / (1 << 53)


def random_text(length: int, alphabet: str) -> str:
    """`length` independent, uniformly random characters of `alphabet`, which has 256 at most."""
    character_of, unfair = _dice(alphabet)
    text = ""
    while len(text) < length:
        text += "".join(map(character_of, secrets.token_bytes(2 * length).translate(None, unfair)))
    return text[:length]


@cache
def _dice(alphabet: str) -> tuple[Callable[[int], str], bytes]:
    """What each byte stands for, and the bytes that are thrown away.

    Those are past the last whole multiple of the alphabet's size: with them some characters would come more often.
    """
    return (alphabet * 256)[:256].__getitem__, bytes(range(256 - 256 % len(alphabet), 256))
