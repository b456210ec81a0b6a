"""Time limits that share one timer."""

from __future__ import annotations

import asyncio

import pytest

from broker.deadline import Deadlines


async def test_a_block_that_waits_too_long_is_ended() -> None:
    """Past its limit, what the block awaits is cancelled and the block raises TimeoutError; the task lives on."""
    waiting = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError), Deadlines().within(0.01):
        await waiting
    assert waiting.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_in_time_is_left_alone() -> None:
    """Work within the limit ends as it would without one, and later work of the task is not struck."""
    deadlines = Deadlines()
    with deadlines.within(2):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await asyncio.Event().wait()


async def test_an_error_inside_stays_what_it_is() -> None:
    """An exception of the block's own passes through."""
    with pytest.raises(KeyError), Deadlines().within(10):
        raise KeyError


async def test_the_inner_limit_strikes_inside_the_outer() -> None:
    """Nested limits strike by themselves: the inner one's TimeoutError can be handled within the outer."""
    deadlines, handled = Deadlines(), False
    with deadlines.within(30):
        try:
            with deadlines.within(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            handled = True
        await asyncio.sleep(0)
    assert handled


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Who cancels the task sees it cancelled, limit or not."""
    entered = asyncio.Event()

    async def work() -> None:
        with Deadlines().within(30):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_many_limits_strike_each_their_own() -> None:
    """Of many blocks only those past their limit are ended."""
    deadlines, release = Deadlines(), asyncio.Event()

    async def work(limit_s: float) -> str:
        try:
            with deadlines.within(limit_s):
                await release.wait()
        except TimeoutError:
            return "struck"
        return "done"

    short = [asyncio.create_task(work(0.01)) for _ in range(20)]
    long = [asyncio.create_task(work(30)) for _ in range(20)]
    assert await asyncio.gather(*short) == ["struck"] * 20
    release.set()
    assert await asyncio.gather(*long) == ["done"] * 20
