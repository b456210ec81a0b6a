"""Lenient fields: what Vault's clients send is understood, everything else is refused by name and never repeated."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from broker.api import fields
from broker.api.fields import (
    CommaList,
    DurationSeconds,
    KeyValues,
    LenientBool,
    LenientInt,
    ShortText,
    StringList,
    Text,
    Wire,
    decode,
)
from broker.errors import InvalidRequest

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


class Everything(Wire):
    flag: LenientBool = False
    count: LenientInt = Field(0, ge=0, le=9)
    span: DurationSeconds = 0
    text: Text = ""
    short: ShortText = ""
    words: StringList = Field(default_factory=list)
    commas: CommaList = Field(default_factory=list)
    pairs: KeyValues = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("field", "sent", "read"),
    [
        ("flag", True, True),
        ("flag", "true", True),
        ("flag", "T", True),
        ("flag", 1, True),
        ("flag", "0", False),
        ("flag", "", False),
        ("count", 5, 5),
        ("count", "5", 5),
        ("count", 5.0, 5),
        ("count", "", 0),
        ("span", 90, 90),
        ("span", "90", 90),
        ("span", "1h30m", 5_400),
        ("span", "5d", 432_000),
        ("text", 7, "7"),
        ("text", True, "true"),
        ("words", "a,b", ["a,b"]),
        ("words", ["a", "", 1], ["a", "1"]),
        ("words", "", []),
        ("commas", "a, b,,c", ["a", "b", "c"]),
        ("commas", [" a ", "b"], ["a", "b"]),
        ("commas", "", []),
        ("pairs", {"k": "v", "n": 1}, {"k": "v", "n": "1"}),
        ("pairs", ["k=v", "x=y=z"], {"k": "v", "x": "y=z"}),
        ("pairs", "k=v", {"k": "v"}),
    ],
)
def test_coercion_follows_vault(field: str, sent: object, read: object) -> None:
    """Each type reads what Vault's field schema of the same name reads."""
    request = decode(Everything, {field: sent})
    assert getattr(request, field) == read
    assert request.model_fields_set == {field}


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("flag", "yes"),
        ("flag", []),
        ("count", "five"),
        ("count", 1.5),
        ("count", True),
        ("count", 10),
        ("count", -1),
        ("count", 2**63),
        ("count", "9" * 25),
        ("span", "soon"),
        ("span", -1),
        ("span", True),
        ("text", {"a": 1}),
        ("text", "a\x00b"),
        ("text", "\ud800"),
        ("text", "a" * 65_537),
        ("short", "a" * 257),
        ("words", [["a"]]),
        ("words", ["a"] * 1_001),
        ("commas", {"a": 1}),
        ("pairs", ["k"]),
        ("pairs", [1]),
        ("pairs", {"k": ["v"]}),
        ("pairs", {f"k{n}": "v" for n in range(1_001)}),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(field: str, sent: object) -> None:
    """A value that can't be read names its field."""
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        decode(Everything, {field: sent})


@pytest.mark.parametrize("sent", ["hunter22", ["hunter22"], {"hunter22": []}, "hunter22\x00"])
@pytest.mark.parametrize("field", ["flag", "count", "span", "pairs"])
def test_a_refusal_never_repeats_the_value(field: str, sent: object) -> None:
    """The value may be a secret, so no message has it."""
    with pytest.raises(InvalidRequest) as refusal:
        decode(Everything, {field: sent})
    assert "hunter22" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_null_counts_as_absent() -> None:
    """A null neither fails nor counts as sent."""
    request = decode(Everything, {"flag": None, "other": None})
    assert request.model_fields_set == set()
    assert request.unknown() == []


def test_unknown_fields_are_kept_and_named() -> None:
    """What the model does not know stays in `model_extra`, and `unknown` names it in order."""
    request = decode(Everything, {"b": {"c": 1}, "a": [1]})
    assert request.model_extra == {"b": {"c": 1}, "a": [1]}
    assert request.unknown() == ["a", "b"]


@pytest.mark.parametrize("body", [[], "text", 1, None, True])
def test_only_an_object_is_a_request(body: object) -> None:
    """A body of another kind is refused."""
    with pytest.raises(InvalidRequest):
        decode(Everything, body)


@pytest.mark.parametrize(
    "extra",
    ["\x00", ["\x00"], {"\x00": 1}, {"a": ["b", {"c": "\x00"}]}, 2**64, float("inf"), float("nan"), ["\udfff"]],
)
def test_unknown_fields_are_bounded_too(extra: object) -> None:
    """A NUL, half a character or a number that no store keeps is found however deep it hides."""
    with pytest.raises(InvalidRequest):
        decode(Everything, {"extra": extra})


def test_nesting_is_bounded() -> None:
    """A value nested beyond the limit is refused, and one at the limit is not."""
    fits: object = 1
    for _ in range(fields.NESTING):
        fits = [fits]
    decode(Everything, {"extra": fits})
    with pytest.raises(InvalidRequest, match="nested too deep"):
        decode(Everything, {"extra": [fits]})


@given(st.dictionaries(st.sampled_from([*Everything.model_fields, "extra", "\x00"]), json_values, max_size=5))
def test_any_json_is_read_or_refused(body: dict[str, object]) -> None:
    """No JSON object makes anything but a request or an `InvalidRequest`, and what was read can be written again."""
    try:
        request = decode(Everything, body)
    except InvalidRequest:
        return
    json.dumps(request.model_dump(), allow_nan=False).encode()


@pytest.mark.parametrize("text", ["a", "A_b", "a-b.c", "1", "_", "a" * 256])
def test_names_that_are_allowed(text: str) -> None:
    """Vault's GenericNameRegex, up to 256 characters."""
    assert fields.name(text, "name") == text


@pytest.mark.parametrize("text", ["", "-a", "a-", ".a", "a.", "a b", "a/b", "é", "a\n", "a'", "a" * 257])
def test_names_that_are_refused(text: str) -> None:
    """Everything else is refused with what is allowed."""
    with pytest.raises(InvalidRequest, match=r"^name: not a name; allowed are"):
        fields.name(text, "name")


@given(st.text())
def test_a_name_is_safe_wherever_it_goes(text: str) -> None:
    """What passes as a name has neither quote, slash, blank nor control character."""
    try:
        fields.name(text, "name")
    except InvalidRequest:
        return
    assert text.isascii()
    assert all(character.isalnum() or character in "_-." for character in text)
