"""The cache of tokens: bounded, short-lived, and never surer than the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit.entry import NOBODY
from broker.identity.cache import Known, TokenCache
from broker.model import NO_TOKEN, Accessor, Token, TokenFacts, TokenNumber

_FACTS = TokenFacts(accessor=Accessor("a"), policies=(), display_name="", path="")


def _known(number: int, expires_ms: int | None = None) -> Known:
    token = Token(number=TokenNumber(number), parent=NO_TOKEN, expires_ms=expires_ms, uses_left=None, digest=b"", facts=_FACTS)
    return Known(token, NOBODY)


@pytest.fixture
def cache() -> TokenCache:
    return TokenCache(size=3, hold_ms=100)


def test_a_token_is_believed_for_a_while(cache: TokenCache) -> None:
    """Up to `hold_ms`, and not at it."""
    cache.put(b"1", _known(1), 0, cache.generation)
    assert cache.get(b"1", 99) is not None
    assert cache.get(b"1", 100) is None
    assert len(cache) == 0


def test_a_token_is_not_believed_past_its_end(cache: TokenCache) -> None:
    """Its own end comes first where that is sooner."""
    cache.put(b"1", _known(1, expires_ms=50), 0, cache.generation)
    assert cache.get(b"1", 49) is not None
    assert cache.get(b"1", 50) is None


def test_the_oldest_makes_room(cache: TokenCache) -> None:
    """There are never more than `size`."""
    for number in range(5):
        cache.put(str(number).encode(), _known(number), 0, cache.generation)
    assert len(cache) == 3
    assert cache.get(b"1", 0) is None
    assert cache.get(b"4", 0) is not None


def test_a_forgotten_token_is_gone(cache: TokenCache) -> None:
    """At once, and its neighbours stay."""
    cache.put(b"1", _known(1), 0, cache.generation)
    cache.put(b"2", _known(2), 0, cache.generation)
    cache.forget([TokenNumber(1), TokenNumber(9)])
    assert cache.get(b"1", 0) is None
    assert cache.get(b"2", 0) is not None


def test_an_answer_that_was_overtaken_is_not_kept(cache: TokenCache) -> None:
    """What the store said before a token was forgotten may be what the token was before it ended."""
    generation = cache.generation
    cache.forget([TokenNumber(1)])
    cache.put(b"1", _known(1), 0, generation)
    assert cache.get(b"1", 0) is None


@given(st.lists(st.tuples(st.sampled_from(["put", "get", "forget"]), st.integers(0, 9), st.integers(0, 300)), max_size=60))
def test_the_cache_never_outgrows_itself_or_revives(steps: list[tuple[str, int, int]]) -> None:
    """Whatever happens, it holds no more than its size, and nothing that was forgotten and not put again."""
    cache = TokenCache(size=3, hold_ms=100)
    held: set[int] = set()
    for verb, number, now in sorted(steps, key=lambda step: step[2]):
        digest = str(number).encode()
        if verb == "put":
            cache.put(digest, _known(number), now, cache.generation)
            held.add(number)
        elif verb == "forget":
            cache.forget([TokenNumber(number)])
            held.discard(number)
        else:
            found = cache.get(digest, now)
            assert found is None or (number in held and found.token.number == number)
        assert len(cache) <= 3
