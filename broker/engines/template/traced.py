"""Text that remembers, character by character, where it came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

RANDOM = "r"
"""Worth a random base62 character (5.95 bits) at least; of two hexadecimal digits one is marked."""
CALLER = "c"
"""From the display name or the role's name: to be sanitised, and cut first."""
FIXED = "f"
"""Written in the template, a time, a digest, or no longer counted as random."""


class Text(NamedTuple):
    """Characters, and for each one its mark; both strings are always of one length."""

    chars: str
    marks: str

    @property
    def randomness(self) -> int:
        """How many of the characters count as random."""
        return self.marks.count(RANDOM)

    def first(self, count: int) -> Text:
        """The first `count` characters."""
        return Text(self.chars[:count], self.marks[:count])


EMPTY = Text("", "")


def fixed(chars: str) -> Text:
    """Text that is the same for every user, or that tells nobody apart."""
    return Text(chars, FIXED * len(chars))


def caller(chars: str) -> Text:
    """Text that somebody outside chose."""
    return Text(chars, CALLER * len(chars))


def drawn(chars: str) -> Text:
    """Text drawn at random from base62."""
    return Text(chars, RANDOM * len(chars))


def hex_digits(digits: str, randomness: int) -> Text:
    """Hexadecimal digits that carry `randomness` random characters: every second digit is marked, as far as they go."""
    marked = min(randomness, len(digits) // 2)
    return Text(digits, (FIXED + RANDOM) * marked + FIXED * (len(digits) - 2 * marked))


def join(parts: Iterable[Text]) -> Text:
    """All parts in their order."""
    pairs = list(parts)
    return Text("".join([part.chars for part in pairs]), "".join([part.marks for part in pairs]))
