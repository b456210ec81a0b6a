"""User names from the connection's template (reference: Vault's "username templating")."""

from __future__ import annotations

import re

from broker.engines.template.parser import parse
from broker.engines.template.traced import CALLER, Text, caller, join
from broker.engines.template.tree import Scene, variants, write
from broker.errors import InvalidRequest
from broker.model import UserName

LEAST_RANDOM = 12
"""Random base62 characters in every name (71 bits): enough that a name is never used twice in the life of a database."""
_LONGEST_TEMPLATE = 4096
_LONGEST_NAME_READ = 1024
"""A display name is used up to here; no database has names of that length."""
_MOST_VARIANTS = 64
_SAMPLES = (("", ""), ("display-name" * 40, "role-name" * 40))
_SAMPLE_MS = 1_700_000_000_000
_SAFE = re.compile(r"[A-Za-z0-9_.-]*")
_ODD = re.compile(r"[^A-Za-z0-9_.-]")
_UNUSABLE = re.compile(r"[^!-~]|['\"`\\;]")
"""What no name may hold: it stands unescaped inside the operator's own quotes wherever `{{name}}` does."""


class UserNameTemplate:
    """A template that was checked once and yields names of at most `max_bytes` ASCII characters.

    Names from outside lose every character but letters, digits, `_`, `.` and `-` (each becomes `-`), and are cut where a name
    would get too long. Random characters are never cut, except by a `truncate` that the template itself asks for.
    """

    __slots__ = ("_max_bytes", "_nodes")

    def __init__(self, template: str, max_bytes: int) -> None:
        """Checks every way through the template's conditions, with short and with long names.

        Raises `InvalidRequest`, "invalid username template: ...", with the place of the mistake; also where fewer than 12
        random characters would survive, where the rest leaves no room for them, and for characters that no name may hold.
        """
        if len(template) > _LONGEST_TEMPLATE:
            raise _invalid(f"it has over {_LONGEST_TEMPLATE} characters")
        self._max_bytes = max_bytes
        self._nodes = parse(template)
        for way in variants(self._nodes, _MOST_VARIANTS):
            for display_name, role in _SAMPLES:
                _finished(write(way, Scene(caller(display_name), caller(role), _SAMPLE_MS)), max_bytes)

    def render(self, display_name: str, role: str, now_ms: int) -> UserName:
        """A fresh name. Raises `InvalidRequest` where only these very names make the template fail, e.g. in `decode_hex`."""
        scene = Scene(caller(display_name[:_LONGEST_NAME_READ]), caller(role[:_LONGEST_NAME_READ]), now_ms)
        return _finished(write(self._nodes, scene), self._max_bytes)


def _finished(text: Text, max_bytes: int) -> UserName:
    if not _SAFE.fullmatch(text.chars):
        text = _sanitised(text)
    if len(text.chars) > max_bytes:
        text = _fitted(text, max_bytes)
    if text.randomness < LEAST_RANDOM:
        raise _invalid(
            f"{text.randomness} random characters survive in a name, and {LEAST_RANDOM} are needed"
            " (of two hexadecimal digits one counts); use {{random 20}} and truncate the other parts"
        )
    return UserName(text.chars)


def _sanitised(text: Text) -> Text:
    chars = [_ODD.sub("-", char) if mark == CALLER else char for char, mark in zip(text.chars, text.marks, strict=True)]
    clean = "".join(chars)
    unusable = _UNUSABLE.search(clean)
    if unusable:
        raise _invalid(f"a name can't hold the character {unusable[0]!r}")
    return Text(clean, text.marks)


def _fitted(text: Text, max_bytes: int) -> Text:
    """The text with the longest of the callers' names cut until all fits."""
    runs = [Text(text.chars[run.start() : run.end()], run[0]) for run in re.finditer("c+|[^c]+", text.marks)]
    room = max_bytes - sum(len(run.chars) for run in runs if run.marks[0] != CALLER)
    if room < 0:
        raise _invalid(
            f"without display name and role a name has {max_bytes - room} characters, and this database allows {max_bytes}"
        )
    lengths = [len(run.chars) for run in runs if run.marks[0] == CALLER]
    level = next(level for level in range(max_bytes, -1, -1) if sum(min(length, level) for length in lengths) <= room)
    return join(run.first(level) if run.marks[0] == CALLER else run for run in runs)


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"invalid username template: {what}")
