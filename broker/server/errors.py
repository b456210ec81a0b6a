"""The one place where errors become HTTP: status, texts and Retry-After of each class.

The texts are Vault's where it has any. Two things differ on purpose: what a caller can put right is 400 where Vault says 500 (its
client repeats 5xx), and what does not answer is 503 with Retry-After. 500 is a bug.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import structlog

from broker import errors
from broker.api.envelope import multi_error

_log = structlog.get_logger("broker.server")

_STATUS: dict[type[BaseException], int] = {
    errors.InvalidRequest: 400,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.UnsupportedOperation: 405,
    errors.BodyTooLarge: 413,
    errors.LimitExceeded: 429,
    errors.Unavailable: 503,
    errors.EngineError: 400,
    errors.UserNameTaken: 503,
    errors.DatabaseUnavailable: 503,
    errors.EngineMissing: 503,
    errors.StateConflict: 400,
}
BUG = 500
_UNAVAILABLE = 503
_IN_LIST = (errors.UnsupportedPath, errors.UnsupportedOperation)
"""Vault wraps these texts in its multi-error shape."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller hears instead of an answer."""

    status: int
    texts: tuple[str, ...]
    retry_after_s: int | None = None


def refusal(error: BaseException) -> Refusal:
    """The answer to a request that failed with `error`. What is unforeseen (`BUG`) shows nothing of its text."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), BUG)
    if status == BUG:
        return Refusal(BUG, ("internal error",))
    text = str(error)
    if isinstance(error, _IN_LIST):
        text = multi_error(text)
    elif type(error) is errors.NotFound and text == errors.NotFound.__doc__:
        text = ""
    return Refusal(status, (text,) if text else (), _retry_after(error, status))


def log_bug(error: BaseException) -> None:
    """Logs where an unforeseen error came from. Not its text and no variables: either may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    _log.error(
        "a request failed for a reason that nobody foresaw; please report it",
        error=type(error).__name__,
        where=[f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames],
    )


def _retry_after(error: BaseException, status: int) -> int | None:
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        return max(1, error.retry_after_s)
    return 1 if status == _UNAVAILABLE else None
