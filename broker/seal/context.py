"""Where a sealed value belongs, as bytes that the seal is bound to (AES-GCM's associated data)."""

from __future__ import annotations

_FORMAT = b"broker/1"
"""Raised when what a context says, or how, changes: a value sealed under another format then does not open."""


def context(table: str, row: int | str, column: str, *clear: int | str | bytes) -> bytes:
    """The place of one value: its table, row and column, and the clear columns that it must not be separated from.

    Unambiguous: each part carries its type and, where it has one, its length, so two different places never give the
    same bytes. A hash over it is unambiguous too.
    """
    return b"".join([_FORMAT, _part(table), _part(row), _part(column), *map(_part, clear)])


def _part(value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return b"i%d;" % value
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(text), text)
    return b"b%d:%b" % (len(value), value)
