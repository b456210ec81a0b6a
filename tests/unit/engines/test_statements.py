"""Statements: variables, expiry, and the forms in which a request writes them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.engines.statements import decode, expiration, place, render
from broker.errors import InvalidRequest

SAFE = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="'\"`\\"))


def encoded(text: str) -> str:
    """Base64 of a text, as an operator would send it."""
    return base64.b64encode(text.encode()).decode()


def test_variables_are_replaced_wherever_they_stand() -> None:
    """Each `{{name}}` becomes its value, as often as it stands there."""
    text = 'CREATE ROLE "{{name}}" PASSWORD \'{{password}}\'; GRANT app TO "{{name}}"'
    assert render(text, name="u", password="p") == 'CREATE ROLE "u" PASSWORD \'p\'; GRANT app TO "u"'


@pytest.mark.parametrize("text", ["{{ name }}", "{{other}}", "{name}", "{{NAME}}", "{{name", "{{}}", "{{{x}}}"])
def test_what_is_no_known_variable_is_left_alone(text: str) -> None:
    """Only the exact form of a variable that is given is replaced."""
    assert render(text, name="u") == text


def test_values_are_not_looked_into() -> None:
    """A value that looks like a variable is put in as it is, whatever the order."""
    assert render("{{name}} {{password}}", name="{{password}}", password="{{name}}") == "{{password}} {{name}}"


@pytest.mark.parametrize("bad", ["a'b", 'a"b', "a\\b", "a\x00b", "a\nb", "a`b", "ä", "\x7f", "a\ud800"])
def test_unsafe_value_is_refused_without_showing_it(bad: str) -> None:
    """A value that could end a literal is refused, by the variable's name alone, since it may be a password."""
    with pytest.raises(InvalidRequest, match=r"\{\{password\}\}") as caught:
        render("x", password=f"hunter2{bad}")
    assert "hunter2" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["{{name}}", "{{password}}", "{{x}}", "{", "}", "'", " ", "text"])), SAFE, SAFE)
def test_render_puts_each_value_in_its_place(pieces: list[str], name: str, password: str) -> None:
    """Rendering a text piece by piece, or as a whole, is the same where pieces don't make a variable together."""
    text = "|".join(pieces)
    expected = "|".join({"{{name}}": name, "{{password}}": password}.get(piece, piece) for piece in pieces)
    assert render(text, name=name, password=password) == expected


def test_expiration_is_utc_with_a_numeric_zone() -> None:
    """Milliseconds are cut, never rounded up, and the zone is written as a number."""
    assert expiration(1_700_000_000_999) == "2023-11-14 22:13:20+0000"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], []),
        (["", "  ", "SELECT 1"], ["SELECT 1"]),
        (["SELECT 1; SELECT 2"], ["SELECT 1; SELECT 2"]),
        (["SELECT 1", "SELECT 2"], ["SELECT 1", "SELECT 2"]),
        (['["SELECT 1", "SELECT 2"]'], ["SELECT 1", "SELECT 2"]),
        (["[]"], []),
        ([encoded("CREATE ROLE x")], ["CREATE ROLE x"]),
        ([encoded('["CREATE ROLE x", "GRANT y"]')], ["CREATE ROLE x", "GRANT y"]),
        ([encoded("SELECT 1"), "SELECT 2"], ["SELECT 1", "SELECT 2"]),
        (["[1, 2]"], ["[1, 2]"]),
        (["[broken"], ["[broken"]),
        (["VACUUM"], ["VACUUM"]),
        (["SELECT11"], ["SELECT11"]),
    ],
)
def test_statements_are_decoded(written: list[str], expected: list[str]) -> None:
    """Plain texts, JSON, base64 and base64 of JSON give the statements that the operator meant."""
    assert list(decode(written)) == expected


@settings(deadline=None)
@given(st.lists(st.text()))
def test_decode_never_fails(written: list[str]) -> None:
    """Any text gives statements, none of them empty."""
    assert all(statement.strip() for statement in decode(written))


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text)))
def test_json_list_survives_base64(statements: list[str]) -> None:
    """What was encoded as a JSON list in base64 comes back unchanged."""
    assert list(decode([encoded(json.dumps(statements))])) == statements


@pytest.mark.parametrize(
    ("text", "found", "at"),
    [
        ("GRANT a TO b", "TO", (1, 9)),
        ("x\ny {{name}} z", "z", (2, 12)),
        ("x {{name}} {{other}} z", "z", (1, 22)),
        ("x {{name}} y", "long", (1, 3)),
        ("{{name}}\n{{name}} z", "z", (2, 10)),
    ],
)
def test_place_is_where_it_was_written(text: str, found: str, at: tuple[int, int]) -> None:
    """What stands somewhere in the filled-in text is found in the text as it was written, by line and column."""
    rendered = render(text, name="a-long-name")
    assert place(text, rendered.index(found), name="a-long-name") == at
