"""The one reviewed place where names and texts become SQL.

PostgreSQL manual 4.1.1 "Identifiers and Key Words" and 4.1.2 "Constants". Utility statements take no parameters, so this is
how a user's name reaches them. NUL can stand in neither and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from broker.errors import EngineError

_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b"'\\")


def identifier(name: str) -> str:
    """`name` as a quoted identifier."""
    _refuse_nul(name)
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a string constant that reads the same whatever `standard_conforming_strings` says."""
    _refuse_nul(text)
    quoted = "'" + text.replace("'", "''") + "'"
    # The space keeps the E from growing into a word before it.
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def octets(raw: bytes) -> str:
    """`raw` as a string constant of these very bytes in a database of any encoding."""
    if raw.isascii():
        return literal(raw.decode())
    return " E'" + "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in raw) + "'"


def identifiers(names: Sequence[str]) -> str:
    """The names as a list of quoted identifiers."""
    return ", ".join(identifier(name) for name in names)


def comment(text: str) -> str:
    """`text` as a comment, which a name inside it can't end."""
    return f"/* {text.replace('*/', '* /').replace('/*', '/ *')} */"


@lru_cache(maxsize=64)
def moment(at_ms: int) -> str:
    """A moment (Unix milliseconds) as a constant that reads the same whatever `DateStyle` and `TimeZone` say."""
    # The users of a batch mostly have the same.
    return f"'{datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=' ')}'"


def _refuse_nul(text: str) -> None:
    if "\x00" in text:
        raise EngineError("a NUL character can't be sent to PostgreSQL")
