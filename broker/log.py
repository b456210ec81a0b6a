"""How we log: structlog, JSON or console, to standard error; redaction stands last before the renderer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from broker.secret import Secret

_HIDDEN_KEYS = frozenset(
    {"authorization", "body", "client_token", "connection_url", "key", "password", "secret", "token", "verifier"}
)
_HIDDEN = "[redacted]"
# Without local variables: a frame's may hold a revealed password.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class LogSettings(BaseModel):
    """How the daemon logs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least severe line that is written.")
    format: Literal["json", "console"] = Field(
        "json", description="`json`: one object a line; `console`: for reading at a terminal."
    )


def configure(settings: LogSettings) -> None:
    """Sets up structlog, and sends what libraries log through the standard library the same way."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    rendered: list[structlog.typing.Processor] = (
        [_TRACEBACKS, redact, structlog.processors.JSONRenderer()] if settings.format == "json" else [redact, _console()]
    )
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:-1], structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def _console() -> structlog.dev.ConsoleRenderer:
    """For reading; in colours at a terminal alone (https://no-color.org)."""
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    # As literals: a name that somebody gave a role may hold what a terminal obeys.
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback, repr_native_str=True)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces every `Secret`, and every value under a name that usually holds one, however deep."""
    for name in event:
        event[name] = _clean(name, event[name])
    return event


def _clean(name: str, value: Any) -> Any:
    if isinstance(value, Secret) or (name.lower() in _HIDDEN_KEYS and value is not None):
        return _HIDDEN
    if isinstance(value, dict):
        return {key: _clean(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", inner) for inner in value]
    return value
