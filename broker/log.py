"""How we log: structlog, JSON or console, to standard error; redaction stands last before the renderer.

A log is there to be read, and nothing waits for it: where nobody takes the lines, or their disc is full, they are lost and counted.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog
from pydantic import BaseModel, ConfigDict, Field

from broker.secret import Secret

_HIDDEN_KEYS = frozenset(
    {"authorization", "body", "client_token", "connection_url", "key", "password", "secret", "token", "verifier"}
)
_HIDDEN = "[redacted]"
# Without local variables: a frame's may hold a revealed password.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


_PATIENCE_MS = 100
"""How long whoever logs waits for a reader that is behind; once one has kept it waiting, no longer until lines are taken again."""


class Lines:
    """As much of a text stream as logging needs; it never raises, and waits for its reader no longer than that.

    All of the broker runs in the thread that logs: a pipe that nobody empties would stop it, and a full disc fail whatever was logged.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        try:
            self._descriptor = stream.fileno()
        except (OSError, ValueError):
            self._descriptor = -1  # Somebody put what is no file in its place, as tests do.
        self._lost = 0
        self._torn = False

    def write(self, text: str) -> None:
        """Writes one line or several, after a line about those that were lost before it; or else they are lost, too."""
        note = f'{{"lines": {self._lost}, "event": "lines of the log were lost", "level": "warning"}}\n' if self._lost else ""
        self._lost = 0 if self._taken(("\n" if self._torn else "") + note + text) else self._lost + 1

    def flush(self) -> None:
        """Nothing is held back."""

    def _taken(self, text: str) -> bool:
        rest = whole = memoryview(text.encode(errors="backslashreplace"))
        try:
            if self._descriptor < 0:
                self._stream.write(text)
                return True
            while rest and self._ready():
                # What is ready takes so much without waiting (pipe(7)).
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        except (OSError, ValueError):
            pass
        if len(rest) < len(whole):
            self._torn = bool(rest)
        return not rest

    def _ready(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(0 if self._lost else _PATIENCE_MS))


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
    lines = cast("TextIO", Lines(sys.stderr))
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(lines)
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
