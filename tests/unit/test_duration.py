"""Durations as people write them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.duration import MAX_S, format_seconds, parse_seconds
from broker.errors import InvalidRequest


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0),
        (90, 90),
        (90.0, 90),
        ("90", 90),
        ("", 0),
        ("1h30m", 5_400),
        ("5d", 432_000),
        ("1500ms", 1),
        ("1.5h", 5_400),
        (" 10s ", 10),
    ],
)
def test_what_is_read(written: object, seconds: int) -> None:
    """Numbers, numeric texts and Go's durations, with days, are read as whole seconds."""
    assert parse_seconds(written, field="ttl") == seconds


@pytest.mark.parametrize(
    ("written", "mistake"),
    [
        *(
            (written, "not a duration")
            for written in ("1x", "h", "1h 30m", True, None, [], {}, 1.5, "1e9", "٣s", "nan", "-", "-x")
        ),
        *((written, "negative") for written in (-1, -1.0, "-1", "-5s", " -1h30m")),
        *((written, "too long") for written in (MAX_S + 1, "999999h", "999999999999d", 10**15)),
    ],
)
def test_what_is_refused(written: object, mistake: str) -> None:
    """Anything else is refused with the field's name, what is wrong with it, and what is allowed."""
    with pytest.raises(InvalidRequest, match=rf"^ttl: {mistake}; allowed are .* up to 100 years"):
        parse_seconds(written, field="ttl")


@given(st.integers(min_value=0, max_value=MAX_S))
def test_format_is_read_back(seconds: int) -> None:
    """What is printed reads as the same span."""
    assert parse_seconds(format_seconds(seconds), field="ttl") == seconds


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Any text is either a span or an InvalidRequest."""
    with suppress(InvalidRequest):
        assert 0 <= parse_seconds(text, field="x") <= MAX_S
