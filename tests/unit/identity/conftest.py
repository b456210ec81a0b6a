"""Tokens for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from broker.model import NO_TOKEN, Accessor, Token, TokenFacts, TokenNumber


@pytest.fixture
def make_token() -> Callable[..., Token]:
    """A token that never ends, with the given fields of its row or its facts changed."""

    def make(**fields: Any) -> Token:
        facts = TokenFacts(accessor=Accessor("a" * 24), policies=("root",), display_name="root", path="auth/token/root")
        row = Token(number=TokenNumber(1), parent=NO_TOKEN, expires_ms=None, uses_left=None, digest=b"d", facts=facts)
        of_row = {name: value for name, value in fields.items() if name in Token.__struct_fields__}
        of_facts = {name: value for name, value in fields.items() if name not in of_row}
        return replace(row, **of_row, facts=replace(facts, **of_facts))

    return make
