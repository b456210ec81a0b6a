"""From the text of a template to tokens, as Go's text/template cuts it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from broker.errors import InvalidRequest

Kind = Literal["text", "begin", "finish", "string", "number", "field", "word", "|", "(", ")", "end of template"]

_OPEN = re.compile(r"\{\{(-(?=\s))?")
_CLOSE = re.compile(r"(?:(?P<trim>\s+-)|\s*)\}\}")
_COMMENT = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(
    r"""("(?:[^"\\\n]|\\.)*"|`[^`]*`)
      | ([+-]?[0-9]+)(?![\w.])
      | (\.[A-Za-z_]\w*)
      | ([A-Za-z_]\w*)
      | (\|) | (\() | (\))""",
    re.VERBOSE | re.ASCII,
)
_KINDS: tuple[Kind, ...] = ("text", "string", "number", "field", "word", "|", "(", ")")
"""By the number of the group in `_TOKEN`."""
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


class Token(NamedTuple):
    """One piece of a template; `at` is the place of its first character, counted from 1."""

    kind: Kind
    value: str
    at: int


def mistake(at: int, what: str) -> InvalidRequest:
    """The error for a template that can't be used because of what stands at character `at`."""
    return InvalidRequest(f"invalid username template: at character {at}: {what}")


def tokens(source: str) -> Iterator[Token]:
    """All tokens in their order, closed by one `end of template`.

    Text is already trimmed as `{{-` and `-}}` ask for. Raises `InvalidRequest` at the character that fits nowhere.
    """
    place, trim_next = 0, False
    while (opening := _OPEN.search(source, place)) is not None:
        text = source[place : opening.start()]
        text = text.lstrip() if trim_next else text
        yield Token("text", text.rstrip() if opening[1] else text, place + 1)
        comment = _COMMENT.match(source, opening.end())
        if comment is None:
            yield Token("begin", "{{", opening.start() + 1)
        place = opening.end() if comment is None else comment.end()
        closing = _CLOSE.match(source, place)
        while closing is None:
            token, place = _inside(source, place)
            yield token
            closing = _CLOSE.match(source, place)
        if comment is None:
            yield Token("finish", "}}", closing.end() - 1)
        place, trim_next = closing.end(), closing["trim"] is not None
    rest = source[place:]
    yield Token("text", rest.lstrip() if trim_next else rest, place + 1)
    yield Token("end of template", "", len(source) + 1)


def _inside(source: str, place: int) -> tuple[Token, int]:
    """The token at `place` inside an action, and where the next one may start."""
    start = len(source) - len(source[place:].lstrip())
    match = _TOKEN.match(source, start)
    if match is None:
        what = f"{source[start]!r} is not understood" if start < len(source) else "`{{` without its `}}`"
        raise mistake(start + 1, what)
    kind = _KINDS[match.lastindex or 0]
    value = _unquoted(match[0], start + 1) if kind == "string" else match[0]
    return Token(kind, value, start + 1), match.end()


def _unquoted(written: str, at: int) -> str:
    inner = written[1:-1]
    if written[0] == "`":
        return inner

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise mistake(at + 1 + match.start(), f"the escape {match[0]} is not understood")
        return _ESCAPES[match[1]]

    return _ESCAPE.sub(replaced, inner)
