"""What the driver raises, told in the engine's errors."""

from __future__ import annotations

import asyncio

import asyncpg

from broker.errors import DatabaseUnavailable, EngineError
from broker_postgresql.framing import BrokenAnswer

_UNAVAILABLE = ("08", "25006", "25P03", "25P04", "28", "3D000", "53", "57", "58")
"""Starts of codes: connection, read-only, transaction cut off, our own login refused, resources, operator, system."""
_SPOILING = ("08", "25006", "25P03", "25P04", "57P")
"""After these the connection is over, or leads to a server that takes no writes."""
LOCK_TIMEOUT = "55P03"
_TRANSIENT = frozenset({"XX000", "40P01", "40001", LOCK_TIMEOUT, "55006", "23505"})
"""Tuple concurrently updated, deadlock, serialization, lock timeout, in use; unique violations inside a catalogue."""
_NO_TEXT = ("22021", "22P05")
"""What the server holds is no text in its encoding, or has no equivalent in ours."""
_RETRY_AFTER_S = {"57P03": 1, "53300": 2}


class Unreadable(EngineError):
    """a name on the server can't be read; only by asking about one user at a time it shows whose it is."""


def is_transient(sqlstate: str | None) -> bool:
    """Whether the same statement may well succeed when it is tried again at once."""
    return sqlstate in _TRANSIENT


def leaves_connection_usable(error: BaseException) -> bool:
    """Whether the server answered with an ordinary error, after which the connection is as good as before."""
    if isinstance(error, asyncpg.PostgresError):
        return not (error.sqlstate or "").startswith(_SPOILING)
    return isinstance(error, EngineError)


def translated(error: BaseException, where: str) -> EngineError:
    """The error that a caller of the engine can act on; `where` names the connection. The text holds no statement."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        text = f"{where}: {first_line(error)}"
        if (error.sqlstate or "").startswith(_UNAVAILABLE):
            return DatabaseUnavailable(text, retry_after_s=_RETRY_AFTER_S.get(error.sqlstate or "", 1))
        told = Unreadable if error.sqlstate in _NO_TEXT else EngineError
        return told(f"{text} (SQLSTATE {error.sqlstate})")
    if isinstance(error, asyncio.TimeoutError):
        return DatabaseUnavailable(f"{where}: no answer in time")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return DatabaseUnavailable(f"{where}: {type(error).__name__}: {error}")
    return EngineError(f"{where}: {type(error).__name__}: {error}")


def is_foreseen(error: BaseException) -> bool:
    """Whether the server, the network or the driver failed; anything else is a mistake of this program, and no caller's to read."""
    return isinstance(
        error, EngineError | asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError
    )


def first_line(error: BaseException) -> str:
    """The error's own text, without what the driver adds below it; of a connection that we cut, why."""
    told = error.__cause__ if isinstance(error.__cause__, BrokenAnswer) else error
    return str(told).partition("\n")[0]
