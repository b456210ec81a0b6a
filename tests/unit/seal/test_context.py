"""Contexts: two places never give the same bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.seal.context import context

PARTS = st.one_of(st.integers(), st.text(), st.binary())
PLACES = st.tuples(st.text(), st.one_of(st.integers(), st.text()), st.text(), st.lists(PARTS, max_size=4).map(tuple))


def bytes_of(place: tuple[str, int | str, str, tuple[int | str | bytes, ...]]) -> bytes:
    table, row, column, clear = place
    return context(table, row, column, *clear)


def typed(place: tuple[str, int | str, str, tuple[int | str | bytes, ...]]) -> list[tuple[type, object]]:
    table, row, column, clear = place
    return [(type(part), part) for part in (table, row, column, *clear)]


@given(PLACES, PLACES)
def test_different_places_give_different_contexts(one: tuple, other: tuple) -> None:
    """The same bytes come from the same parts alone."""
    assert (bytes_of(one) == bytes_of(other)) == (typed(one) == typed(other))


@given(st.text(), st.text(), st.text())
def test_parts_do_not_run_into_each_other(left: str, middle: str, right: str) -> None:
    """Moving a character over the border between two parts gives another context."""
    if middle:
        assert context(left + middle, 1, right) != context(left, 1, middle + right)
        assert context("t", left + middle, right) != context("t", left, middle + right)


def test_kinds_of_parts_are_told_apart() -> None:
    """A number, its digits and their bytes are three different parts."""
    assert len({context("t", 1, "c", part) for part in (1, "1", b"1")}) == 3


def test_number_of_parts_matters() -> None:
    """A missing part is not an empty one."""
    assert len({context("t", 1, "c"), context("t", 1, "c", ""), context("t", 1, "c", "", "")}) == 3


def test_context_is_what_it_was() -> None:
    """Stored values are bound to these bytes: they never change without a new format."""
    assert (
        context("lease", -7, "facts", 12, "ü", b"\x00")
        == b"broker/1" + b"s5:lease" + b"i-7;" + b"s5:facts" + "i12;s2:üb1:\0".encode()
    )
