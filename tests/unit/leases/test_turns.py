"""One turn at a time for each key."""

from __future__ import annotations

import asyncio

import pytest

from broker.leases.turns import Turns


async def test_a_key_is_held_by_one_at_a_time() -> None:
    """Turns of one key never overlap and come in the order of asking; another key does not wait; nothing is kept after."""
    turns, order, inside = Turns(), [], set()

    async def take(key: bytes, name: int) -> None:
        async with turns.take(key):
            assert key not in inside
            inside.add(key)
            await asyncio.sleep(0)
            order.append(name)
            inside.discard(key)

    await asyncio.gather(take(b"a", 1), take(b"a", 2), take(b"b", 3), take(b"a", 4))
    assert [name for name in order if name != 3] == [1, 2, 4]
    assert order.index(3) == 1
    assert not turns._turns


async def test_a_turn_that_fails_or_is_cancelled_is_over() -> None:
    """The next one goes ahead, and a waiter that leaves is forgotten."""
    turns = Turns()
    with pytest.raises(ValueError, match="oops"):
        async with turns.take(b"a"):
            raise ValueError("oops")
    async with turns.take(b"a"):
        waiter = asyncio.ensure_future(turns.take(b"a").__aenter__())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
    assert not turns._turns
