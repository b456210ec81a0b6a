"""A verb over many users: all together first, then in halves, so that one bad user neither fails nor slows the others much.

Where somebody holds a lock against them, each user alone, beginning anywhere: that costs one lock timeout for each user that is locked,
and nobody else's turn. Such waits have a budget, so that whoever holds a lock on all of them doesn't hold up what comes after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from broker.clock import stopwatch_s
from broker.secret import random_below
from broker_postgresql.failures import LOCK_TIMEOUT, is_transient, leaves_connection_usable
from broker_postgresql.identity import Present

_ATTEMPTS = 3
_PAUSE_MS = 30
_LOCKED_S = 8.0
"""How long one call waits for others' locks in all; then those whose turn has not come are told to be tried again."""
_NO_TURN = "others hold locks against users of the same batch for too long; this one's turn did not come, it is tried again"

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
    waiting, locked_s = [users] if users else [], 0.0
    while waiting:
        some, begun_s = waiting.pop(), stopwatch_s()
        error = await attempt(some, act) if locked_s < _LOCKED_S else asyncpg.LockNotAvailableError(_NO_TURN)
        if error is None:
            continue
        locked = error.sqlstate == LOCK_TIMEOUT
        locked_s += stopwatch_s() - begun_s if locked else 0.0
        if len(some) == 1:
            await fail(some[0], error)
        else:
            waiting += reversed(_alone(some) if locked else _halves(some))


def _halves(users: Sequence[T]) -> list[Sequence[T]]:
    middle = len(users) // 2
    return [users[:middle], users[middle:]]


def _alone(users: Sequence[T]) -> list[Sequence[T]]:
    """In their order, but from anywhere on: those behind the locked ones have their turn in another call."""
    start = random_below(len(users))
    return [[one] for one in (*users[start:], *users[:start])]


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
