"""Text for a terminal. Names of roles, tables and databases are whatever somebody called them, escape sequences included."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text in one line, each character that does not print as Python writes it in a literal: `\x1b`, `\n`, `\u202e`.

    A terminal obeys control characters: it retitles its window, hides lines, types answers; and what turns the direction of writing
    shows a name as another one.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
