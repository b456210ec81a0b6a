"""The keyring: what it seals it opens, in its place only, and it never comes out of a wrong key or a damaged form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import KeyUnusable, SealBroken
from broker.seal import keyring as keyring_module
from broker.seal.context import context
from broker.seal.keyring import SEALS_PER_SAVE, SEALS_PER_VERSION, Keyring, Purpose

MASTER = b"m" * 32
RING = Keyring.new(MASTER)
HERE = context("lease", 1, "facts", 9)


@given(st.binary(), st.text(), st.integers())
def test_what_was_sealed_opens_in_its_place(plaintext: bytes, table: str, row: int) -> None:
    """Any bytes come back as they were."""
    place = context(table, row, "c")
    assert RING.open(RING.seal(plaintext, place), place) == plaintext


@given(st.data())
def test_a_flipped_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    """Version, nonce, ciphertext and tag are all covered."""
    sealed = bytearray(RING.seal(b"some secret value", HERE))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        RING.open(bytes(sealed), HERE)


@given(st.integers(0, 46))
def test_a_cut_value_is_noticed(length: int) -> None:
    """However much of the end is missing."""
    sealed = RING.seal(b"some secret value", HERE)
    with pytest.raises(SealBroken):
        RING.open(sealed[:length], HERE)


@pytest.mark.parametrize(
    "place",
    [
        context("token", 1, "facts", 9),
        context("lease", 2, "facts", 9),
        context("lease", 1, "password", 9),
        context("lease", 1, "facts", 8),
        context("lease", 1, "facts"),
        b"",
    ],
)
def test_a_moved_value_does_not_open(place: bytes) -> None:
    """Not in another table, row or column, nor beside other clear columns."""
    with pytest.raises(SealBroken):
        RING.open(RING.seal(b"x", HERE), place)


def test_the_same_value_is_never_sealed_the_same_way_twice() -> None:
    """Nonces are random, so equal values can't be told from their sealed forms."""
    assert len({RING.seal(b"x", HERE) for _ in range(100)}) == 100


def test_another_keyring_does_not_open_it() -> None:
    """A value from another store is not taken for one of ours."""
    with pytest.raises(SealBroken):
        Keyring.new(MASTER).open(RING.seal(b"x", HERE), HERE)


def test_unwrapped_keyring_opens_what_was_sealed_before() -> None:
    """Data keys and subkeys survive wrapping."""
    again = Keyring.unwrap(RING.wrapped(), MASTER)
    assert again.open(RING.seal(b"x", HERE), HERE) == b"x"
    assert [again.subkey(purpose) for purpose in Purpose] == [RING.subkey(purpose) for purpose in Purpose]


def test_subkeys_are_different_and_32_bytes() -> None:
    """No two purposes share a key, and none is the next store's."""
    keys = {ring.subkey(purpose) for ring in (RING, Keyring.new(MASTER)) for purpose in Purpose}
    assert len(keys) == 2 * len(Purpose)
    assert {len(key) for key in keys} == {32}


def test_wrong_master_key_says_so() -> None:
    """A wrong key is told from a damaged keyring, since what to do differs."""
    with pytest.raises(KeyUnusable, match="another master key"):
        Keyring.unwrap(RING.wrapped(), b"n" * 32)


def test_damaged_wrapped_form_is_noticed() -> None:
    """Every byte of it is covered; nothing of it is used."""
    wrapped = RING.wrapped()
    for position in range(len(wrapped)):
        damaged = bytearray(wrapped)
        damaged[position] ^= 1
        with pytest.raises((SealBroken, KeyUnusable)):
            Keyring.unwrap(bytes(damaged), MASTER)
    for length in (0, 1, 9, 20, 21, len(wrapped) - 1):
        with pytest.raises((SealBroken, KeyUnusable)):
            Keyring.unwrap(wrapped[:length], MASTER)


def test_wrapped_form_holds_no_key_in_clear() -> None:
    """Neither the master key nor a subkey can be read from it."""
    wrapped = RING.wrapped()
    assert not any(key in wrapped for key in (MASTER, *(RING.subkey(purpose) for purpose in Purpose)))


def test_new_keyring_wants_to_be_saved_once() -> None:
    """Before the first commit, and then not again until it has sealed much."""
    ring = Keyring.new(MASTER)
    assert ring.unsaved()
    ring.wrapped()
    assert ring.unsaved()
    ring.saved()
    ring.seal(b"x", HERE)
    assert not ring.unsaved()


def test_count_of_seals_survives_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored count is never below the true one, whenever the process dies."""
    monkeypatch.setattr(keyring_module, "SEALS_PER_SAVE", 3)
    ring = Keyring.new(MASTER)
    stored = b""
    for seals in range(1, 21):
        if ring.unsaved():
            stored = ring.wrapped()
            ring.saved()
        ring.seal(b"x", HERE)
        assert Keyring.unwrap(stored, MASTER)._seals >= seals


def test_used_up_data_key_gets_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its number of seals the next version seals; older values still open, after wrapping too."""
    assert SEALS_PER_VERSION == 1 << 31
    assert SEALS_PER_SAVE < SEALS_PER_VERSION
    monkeypatch.setattr(keyring_module, "SEALS_PER_VERSION", 2)
    ring = Keyring.new(MASTER)
    values = [ring.seal(b"0", HERE)]
    assert ring.unsaved()
    values.append(ring.seal(b"1", HERE))
    assert ring.unsaved()
    values.append(ring.seal(b"2", HERE))
    assert [value[:2] for value in values] == [b"\x00\x01", b"\x00\x01", b"\x00\x02"]
    again = Keyring.unwrap(ring.wrapped(), MASTER)
    assert [again.open(value, HERE) for value in values] == [b"0", b"1", b"2"]
    assert again.seal(b"3", HERE)[:2] == b"\x00\x02"


def test_successor_stays_unsaved_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails must not lose the new version: the next one is told again."""
    ring = Keyring.new(MASTER)
    ring.wrapped()
    ring.saved()
    ring.seal(b"x", HERE)
    monkeypatch.setattr(keyring_module, "SEALS_PER_VERSION", 1)
    assert ring.unsaved()
    assert len(ring._data_keys) == 2
    assert ring.unsaved()
    ring.saved()
    assert not ring.unsaved()
