"""Where one command of a role's statements ends and the next begins, so that an error can be told by its place.

PostgreSQL manual 4.1 "Lexical Structure". Nothing is decided by it: the statements run as a whole, and are run piece by piece only to find
the piece that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""--[^\n]*|/\*|\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w$])\$(?:[^\W\d]\w*)?\$|[();]""", re.DOTALL
)
_COMMENT = re.compile(r"/\*|\*/")
_ATOMIC = re.compile(r"\bbegin\s+atomic\b", re.IGNORECASE)


def commands(text: str) -> Iterator[tuple[int, str]]:
    """The commands of a text that are not empty, each with its offset; as one where the text has a body in SQL (BEGIN ATOMIC)."""
    if _ATOMIC.search(text):
        yield 0, text
        return
    start = 0
    for end in [*_ends(text), len(text)]:
        command = text[start:end]
        if command.strip():
            lead = len(command) - len(command.lstrip())
            yield start + lead, command[lead:]
        start = end + 1


def _ends(text: str) -> Iterator[int]:
    at = depth = 0
    while token := _TOKEN.search(text, at):
        at = token.end()
        if token[0] == "/*":
            at = _after_comment(text, at)
        elif token[0][0] == "$":
            at = _after_body(text, token[0], at)
        elif token[0] in "()":
            depth += 1 if token[0] == "(" else -1
        elif token[0] == ";" and depth <= 0:
            yield token.start()


def _after_body(text: str, tag: str, at: int) -> int:
    """Where a text in dollars ends that began before `at`. One that never ends takes the rest, as it does for the server."""
    end = text.find(tag, at)
    return len(text) if end < 0 else end + len(tag)


def _after_comment(text: str, at: int) -> int:
    """Where a comment ends that began before `at`; comments may hold comments."""
    depth = 1
    while depth and (mark := _COMMENT.search(text, at)):
        depth += 1 if mark[0] == "/*" else -1
        at = mark.end()
    return at if not depth else len(text)
