"""What a server may send, and in which pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_postgresql.framing import ANSWER_MAX, MESSAGE_MAX, BrokenAnswer, Frames


def message(letter: bytes, body: bytes = b"") -> bytes:
    """One message of the protocol."""
    return letter + (len(body) + 4).to_bytes(4, "big") + body


READY = message(b"Z", b"I")


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(0, 200), max_size=20))
def test_messages_pass_in_whatever_pieces_they_come(bodies: list[bytes], cuts: list[int]) -> None:
    """Where the network cuts has no meaning; the broken message after them is found all the same."""
    stream = b"".join(message(b"D", body) for body in bodies)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames = Frames()
    for begin, end in itertools.pairwise(places):
        frames.follow(stream[begin:end])
    with pytest.raises(BrokenAnswer, match="-1 bytes"):
        frames.follow(b"D\xff\xff\xff\xff")


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 3])
def test_message_shorter_than_its_head_is_refused(length: int) -> None:
    """The driver would read it for ever, or beside its buffer."""
    with pytest.raises(BrokenAnswer, match=f" {length} bytes"):
        Frames().follow(READY + b"S" + length.to_bytes(4, "big", signed=True))


@pytest.mark.parametrize("letter", [b"\x00", b"\xff", b" "])
def test_message_of_no_letter_is_refused(letter: bytes) -> None:
    """The driver would lose its place after one of the kind zero that comes in two pieces."""
    with pytest.raises(BrokenAnswer, match="of the kind"):
        Frames().follow(READY + letter + (100).to_bytes(4, "big"))


def test_message_without_end_is_refused_by_its_head() -> None:
    """Nothing of it is waited for."""
    with pytest.raises(BrokenAnswer, match="more than"):
        Frames().follow(b"D" + (ANSWER_MAX + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("letter", [b"E", b"N", b"S", b"T"])
def test_long_text_is_refused_where_no_row_is_expected(letter: bytes) -> None:
    """The driver would be busy with it, and nobody else be served; a row may be as long."""
    frames = Frames()
    frames.follow(message(b"D", bytes(MESSAGE_MAX)) + message(letter, bytes(MESSAGE_MAX - 4)))
    with pytest.raises(BrokenAnswer, match=f"a message of {MESSAGE_MAX + 1} bytes"):
        frames.follow(letter + (MESSAGE_MAX + 1).to_bytes(4, "big"))


def test_answer_without_end_is_refused() -> None:
    """Many small messages fill the memory as one does; what ends with being ready for the next query begins anew."""
    half = message(b"D", bytes(ANSWER_MAX // 2))
    frames = Frames()
    for _ in range(3):
        frames.follow(half + READY)
    frames.follow(half)
    with pytest.raises(BrokenAnswer, match="more than"):
        frames.follow(half)
