"""Errors of engines without their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from broker import errors
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest, UserRemains, WorkContinues
from broker.secret import Secret

_HIDDEN = "[secret]"


def scrubbed(text: str, secrets: Iterable[Secret]) -> str:
    """The text with every one of the secrets replaced, as it is, in single quotes doubled, or as a URL writes it."""
    found = {form for secret in secrets if secret for form in _forms(secret)}
    if not found:
        return text
    # One pass, longest first: neither a shorter secret inside a longer one nor the replacement itself is cut up.
    return re.sub("|".join(re.escape(form) for form in sorted(found, key=len, reverse=True)), _HIDDEN, text)


def clean_error(error: EngineError | InvalidRequest, secrets: Iterable[Secret]) -> EngineError | InvalidRequest:
    """A new error of the same meaning: scrubbed text, no cause, no context, no traceback, nothing that a plugin hung on it.

    A plugin's own subclass becomes the class of `broker.errors` that it extends.
    """
    known = list(secrets)
    text = scrubbed(str(error), known)
    if isinstance(error, UserRemains):
        kind = WorkContinues if isinstance(error, WorkContinues) else UserRemains
        return kind(text, remedy=[scrubbed(statement, known) for statement in error.remedy])
    if isinstance(error, DatabaseUnavailable):
        return DatabaseUnavailable(text, retry_after_s=error.retry_after_s)
    return _known_class(error)(text)


def _known_class(error: EngineError | InvalidRequest) -> type[EngineError | InvalidRequest]:
    return next(
        kind
        for kind in type(error).__mro__
        if kind.__module__ == errors.__name__ and issubclass(kind, EngineError | InvalidRequest)
    )


def _forms(secret: Secret) -> set[str]:
    text = secret.reveal()
    return {text, text.replace("'", "''"), quote(text, safe=""), quote(text), quote_plus(text), repr(text)[1:-1]}


def broken_promise(connection: str, verb: str, error: Exception) -> EngineError:
    """The error for an exception that an engine must not raise: its class alone, since its text may hold anything."""
    return EngineError(f"{verb} on connection {connection} failed inside the engine: {type(error).__name__}")
