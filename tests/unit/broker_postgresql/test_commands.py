"""Where one command ends and the next begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_postgresql.commands import commands


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a; b", ["a", "b"]),
        (" ;; a ;", ["a "]),
        ("a 'x;''y'; b", ["a 'x;''y'", "b"]),
        (r"a E'x\';y'; b", [r"a E'x\';y'", "b"]),
        ('a "x;""y"; b', ['a "x;""y"', "b"]),
        ("DO $$ a; b $$; c", ["DO $$ a; b $$", "c"]),
        ("DO $x$ a; $$ b $x$; c", ["DO $x$ a; $$ b $x$", "c"]),
        ("a -- x; y\n; b", ["a -- x; y\n", "b"]),
        ("a /* x; /* y; */ z; */; b", ["a /* x; /* y; */ z; */", "b"]),
        ("CREATE RULE r AS ON INSERT TO t DO (a; b); c", ["CREATE RULE r AS ON INSERT TO t DO (a; b)", "c"]),
        ("CREATE FUNCTION f() BEGIN ATOMIC a; b; END; c", ["CREATE FUNCTION f() BEGIN ATOMIC a; b; END; c"]),
        ("a; 'never ended; b", ["a", "'never ended", "b"]),
        ("a; $x$ never ended; b", ["a", "$x$ never ended; b"]),
        ("a$b$ ; c$b$", ["a$b$ ", "c$b$"]),
        ("", []),
    ],
)
def test_commands_end_at_their_semicolon(text: str, found: list[str]) -> None:
    """A semicolon ends a command unless it stands in a text, a name, a comment, a body or a parenthesis."""
    assert [command for _, command in commands(text)] == found


def test_a_text_full_of_tags_is_read_once() -> None:
    """Each that never ends was looked for to the end of the text, and then the next: 22 kB took a second and a half of the event loop."""
    text = ";".join(f" $t{number}$" for number in range(200_000))
    assert [start for start, _ in commands(text)] == [1]


@given(st.text(alphabet="ab '\"$;-/*()\n\\eE", max_size=60))
def test_commands_stand_where_they_say(text: str) -> None:
    """Whatever is written, each command stands at its offset, in order, and nothing but semicolons and blanks is left out."""
    at, rest = 0, ""
    for start, command in commands(text):
        assert start >= at
        assert text[start : start + len(command)] == command
        rest += text[at:start]
        at = start + len(command)
    assert set(rest + text[at:]) <= set("; \n")
