"""Operators' statements: how they are written in a role, and how `{{name}}` is filled in. What they mean is the engine's."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from broker.errors import InvalidRequest

_VARIABLE = re.compile(r"\{\{([a-z_]+)\}\}")
_UNSAFE = re.compile(r"['\"`\\\x00-\x1f\x7f]|[^\x00-\x7f]")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def render(text: str, /, **variables: str) -> str:
    """The text with each `{{name}}` of `variables` replaced, as Vault does: no spaces inside, no escaping, others left alone.

    One pass: a value that itself holds `{{...}}` is not looked at again. Since nothing is escaped, a value with a quote, a
    backslash, a control or a non-ASCII character could end the literal or identifier it stands in; generated names and
    passwords have none, and `InvalidRequest` names the variable that does (never its value, which may be a password).
    """
    for name, value in variables.items():
        if _UNSAFE.search(value):
            raise InvalidRequest(f"the value for {{{{{name}}}}} holds a character that is not safe inside a statement")
    return _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), text)


def place(text: str, offset: int, /, **variables: str) -> tuple[int, int]:
    """Line and column, from 1, in a text as it was written, of what stands at `offset` of `render(text, **variables)`.

    For what a variable stands for it is where that variable begins.
    """
    written = rendered = 0
    for match in _VARIABLE.finditer(text):
        value = variables.get(match[1], match[0])
        at = rendered + match.start() - written
        if offset < at:
            break
        if offset < at + len(value):
            return _line_and_column(text, match.start())
        written, rendered = match.end(), at + len(value)
    return _line_and_column(text, written + offset - rendered)


def _line_and_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def expiration(at_ms: int) -> str:
    """A moment as `{{expiration}}` shows it: `YYYY-MM-DD HH:MM:SS+0000`, whole seconds, always UTC."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S%z")


def decode(written: Sequence[str]) -> tuple[str, ...]:
    """The statements that an operator's texts stand for.

    Each text may be base64 of the real one, or a JSON list of strings, or base64 of such a list (Vault's
    `ParseArbitraryStringSlice`). Empty ones are dropped. Nothing is split at semicolons: the operator's split is kept.
    """
    return tuple(statement for text in written for statement in _decode_one(text) if statement.strip())


def _decode_one(written: str) -> list[str]:
    text = _from_base64(written.strip()) or written
    items = _from_json_list(text)
    return [text] if items is None else items


def _from_base64(text: str) -> str | None:
    """What `text` encodes, or None where it is not base64 of readable text."""
    if not _BASE64.fullmatch(text):
        return None
    try:
        decoded = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return decoded if all(character.isprintable() or character.isspace() for character in decoded) else None


def _from_json_list(text: str) -> list[str] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else None
