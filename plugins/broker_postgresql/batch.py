"""A verb over many users: all together first, then in halves, so that one bad user neither fails nor slows the others much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from broker.secret import random_below
from broker_postgresql.failures import LOCK_TIMEOUT, is_transient, leaves_connection_usable
from broker_postgresql.identity import Present

_ATTEMPTS = 3
_PAUSE_MS = 30

Act = Callable[[Sequence[Present]], Awaitable[None]]
T = TypeVar("T")


async def in_halves(
    users: Sequence[T],
    act: Callable[[Sequence[T]], Awaitable[None]],
    fail: Callable[[T, asyncpg.PostgresError], Awaitable[None]],
) -> None:
    """Has `act` done for all users, in one transaction where that goes; `fail` hears of each user for whom it never did.

    An error after which the connection is of no use ends it at once.
    """
    if not users:
        return
    error = await attempt(users, act)
    if error is None:
        return
    if len(users) == 1:
        await fail(users[0], error)
        return
    middle = len(users) // 2
    await in_halves(users[:middle], act, fail)
    await in_halves(users[middle:], act, fail)


async def attempt(users: Sequence[T], act: Callable[[Sequence[T]], Awaitable[None]]) -> asyncpg.PostgresError | None:
    """The error that remained; a batch is tried once, a single user again where that may help."""
    for turn in range(1, _ATTEMPTS + 1):
        try:
            await act(users)
        except asyncpg.PostgresError as error:
            if not leaves_connection_usable(error):
                raise
            # After a lock timeout the wait was long enough already.
            again = is_transient(error.sqlstate) and error.sqlstate != LOCK_TIMEOUT
            if len(users) > 1 or turn == _ATTEMPTS or not again:
                return error
            await asyncio.sleep(random_below(_PAUSE_MS * turn) / 1000)
        else:
            return None
    return None
