"""Where a sealed value belongs, as bytes that the seal is bound to (AES-GCM's associated data)."""

from __future__ import annotations

from functools import lru_cache

_FORMAT = b"broker/1"
"""Raised when what a context says, or how, changes: a value sealed under another format then does not open."""


def context(table: str, row: int | str, column: str, *clear: int | str | bytes) -> bytes:
    """The place of one value: its table, row and column, and the clear columns that it must not be separated from.

    Unambiguous: each part carries its type and, where it has one, its length, so two different places never give the
    same bytes. A hash over it is unambiguous too.
    """
    parts = [_FORMAT]
    for value in (table, row, column, *clear):
        if isinstance(value, int):
            parts.append(b"i%d;" % value)
        elif isinstance(value, str):
            parts.append(_text(value))
        else:
            parts.append(b"b%d:%b" % (len(value), value))
    return b"".join(parts)


@lru_cache(maxsize=64)
def _text(value: str) -> bytes:
    # Most often the name of a table or column, for each value that is sealed.
    text = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(text), text)
