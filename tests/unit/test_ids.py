"""Numbers and the public texts made from them."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clock import SystemClock
from broker.ids import (
    BASE62,
    Numbers,
    PublicIds,
    RequestIds,
    decode_base62,
    encode_base62,
    new_token,
    number_in_token,
)
from broker.model import LeaseNumber, TokenNumber

IDS = PublicIds(b"k" * 32)
NUMBERS = st.integers(min_value=1, max_value=(1 << 63) - 1)
PATHS = st.sampled_from(["database/creds/app", "database/creds/a", "database/creds/app/x"])


@given(st.integers(min_value=1, max_value=30), st.data())
def test_base62_round_trip(width: int, data: st.DataObject) -> None:
    """What is encoded in so many digits has that many, and decodes to itself."""
    value = data.draw(st.integers(min_value=0, max_value=62**width - 1))
    text = encode_base62(value, width)
    assert len(text) == width
    assert decode_base62(text) == value


@given(PATHS, NUMBERS)
def test_lease_id_gives_its_number_back(path: str, number: int) -> None:
    """A lease id is its path and 24 base62 characters, from which the number is read."""
    lease_id = IDS.lease_id(path, LeaseNumber(number))
    assert lease_id.startswith(f"{path}/")
    assert len(lease_id) == len(path) + 25
    assert IDS.lease_number(lease_id) == number


@given(PATHS, NUMBERS, st.integers(min_value=0, max_value=23), st.sampled_from(BASE62))
def test_altered_lease_id_is_none(path: str, number: int, place: int, character: str) -> None:
    """A lease id with one character changed names no lease."""
    lease_id = IDS.lease_id(path, LeaseNumber(number))
    at = len(path) + 1 + place
    altered = lease_id[:at] + character + lease_id[at + 1 :]
    assert IDS.lease_number(altered) == (number if altered == lease_id else None)


def test_lease_id_is_bound_to_path_and_key() -> None:
    """The same last part under another path, or another key, names no lease."""
    last = IDS.lease_id("database/creds/app", LeaseNumber(7)).rpartition("/")[2]
    assert IDS.lease_number(f"database/creds/other/{last}") is None
    assert PublicIds(b"x" * 32).lease_number(f"database/creds/app/{last}") is None
    assert IDS.token_number(last) is None


@pytest.mark.parametrize(
    "text", ["", "/", "database/creds/app/", "x" * 24, "é" * 24, "database/creds/app/" + "z" * 24, "a/" + "0" * 23]
)
def test_garbage_is_no_lease_id(text: str) -> None:
    """Text that no key made is nobody's id, whatever its shape."""
    assert IDS.lease_number(text) is None
    assert IDS.token_number(text) is None


@given(NUMBERS)
def test_token_carries_its_number(number: int) -> None:
    """A token's text names its number; two tokens of one number differ."""
    first, second = new_token(TokenNumber(number)), new_token(TokenNumber(number))
    assert number_in_token(first.reveal()) == number
    assert first != second
    assert number_in_token(first.reveal()[:-1]) is None
    assert number_in_token("x" + first.reveal()[1:]) is None


def test_numbers_grow_and_start_above_the_highest() -> None:
    """Numbers only grow, within a millisecond too, and begin above the highest that is stored."""
    above = 1 << 62
    numbers = Numbers(SystemClock(), above=above)
    made = [numbers.next() for _ in range(1_000)]
    assert made == sorted(set(made))
    assert made[0] > above


def test_request_ids_are_random_uuids() -> None:
    """Version 4 of RFC 9562, never the same twice, also past the first handful of random bytes."""
    ids = RequestIds()
    made = [ids.next() for _ in range(1_000)]
    assert len(set(made)) == len(made)
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in made} == {(4, uuid.RFC_4122)}
    assert all(str(uuid.UUID(text)) == text for text in made)
