"""Generated passwords."""

from __future__ import annotations

import re

from broker.engines.passwords import LENGTH, new_password


def test_password_meets_vaults_default_rule() -> None:
    """Letters, digits and dashes only, at least one capital, small letter, digit and dash, never a dash at an end."""
    for _ in range(200):
        text = new_password().reveal()
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]", text)
        assert len(text) == LENGTH
        assert all(re.search(kind, text) for kind in ("[A-Z]", "[a-z]", "[0-9]", "-"))


def test_passwords_differ() -> None:
    """No password comes twice."""
    assert len({new_password().reveal() for _ in range(1_000)}) == 1_000


def test_every_place_and_character_occurs() -> None:
    """The dash visits every inner place, and the rest every letter and digit: nothing is left out by an off-by-one."""
    texts = [new_password().reveal() for _ in range(3_000)]
    assert {text.index("-") for text in texts} == set(range(1, LENGTH - 1))
    assert len(set("".join(texts))) == 63
