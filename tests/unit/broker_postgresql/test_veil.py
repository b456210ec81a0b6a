"""Secrets under pads."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from broker_postgresql.veil import Veil

KEY = sha256(b"key").hexdigest()
secrets = st.lists(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\n\x00"), max_size=150), max_size=5)


def veil() -> Veil:
    made = Veil()
    made.take(KEY)
    return made


def pads(first: int, length: int) -> bytes:
    """The stream as the server makes it."""
    blocks = range(first, first + length // 32 + 1)
    return b"".join(sha256(bytes.fromhex(KEY) + block.to_bytes(8, "big")).digest() for block in blocks)[:length]


@given(st.lists(secrets, min_size=1, max_size=5))
def test_the_server_takes_it_off(calls: list[list[str]]) -> None:
    """What is covered is the secrets, one a line, XORed with the stream from the place that the call names."""
    covering = veil()
    for call in calls:
        veiled = covering.cover(call)
        covered = veiled.bits.bytes
        assert len(veiled.bits) == 8 * len(covered)
        plain = bytes(a ^ b for a, b in zip(covered, pads(veiled.first, len(covered)), strict=True))
        assert plain.decode() == "\n".join(call)


@given(st.lists(secrets, min_size=2, max_size=6))
def test_no_pad_is_used_twice(calls: list[list[str]]) -> None:
    """Each call begins behind the last pad of the one before."""
    covering, behind = veil(), 0
    for call in calls:
        veiled = covering.cover(call)
        assert veiled.first >= behind
        assert veiled.pads * 256 >= len(veiled.bits)
        behind = veiled.first + veiled.pads


def test_a_new_key_starts_anew() -> None:
    """Under another key the numbers may come again."""
    covering = veil()
    covering.cover(["a" * 100])
    covering.take(sha256(b"other").hexdigest())
    assert covering.cover(["a"]).first == 0
