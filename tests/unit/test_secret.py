"""A value that does not print."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.secret import Secret, random_below, random_text


def test_promise_6_a_secret_prints_nothing() -> None:
    """No way of turning it into text shows it; only reveal does."""
    secret = Secret("hunter2")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret:>40}", "%s" % secret, repr([secret]), repr({"a": secret})]  # noqa: UP031
    assert not any("hunter2" in text for text in shown)
    assert secret.reveal() == "hunter2"


def test_a_secret_is_not_carried_off() -> None:
    """It is not pickled, copied, hashed or written as JSON."""
    secret = Secret("hunter2")
    for carry in (pickle.dumps, copy.copy, copy.deepcopy, hash, json.dumps):
        with pytest.raises(TypeError) as caught:
            carry(secret)  # type: ignore[operator]
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_comparison() -> None:
    """Secrets are equal by their text, never to a plain text, and empty ones are false."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert not Secret("")
    assert Secret("é") == Secret("é")


@given(st.integers(min_value=0, max_value=200), st.text(min_size=1, max_size=256))
def test_random_text_is_of_the_alphabet(length: int, alphabet: str) -> None:
    """It has the length and only characters of the alphabet."""
    text = random_text(length, alphabet)
    assert len(text) == length
    assert set(text) <= set(alphabet)


def test_random_text_uses_the_whole_alphabet_evenly() -> None:
    """Every one of 62 characters comes about as often: none is left out or doubled by a careless modulo."""
    alphabet = "".join(map(chr, range(33, 95)))
    text = random_text(62_000, alphabet)
    assert all(800 < text.count(character) < 1_200 for character in alphabet)


def test_random_below_stays_below() -> None:
    """All values of a small range come, and none beyond."""
    assert {random_below(3) for _ in range(200)} == {0, 1, 2}
