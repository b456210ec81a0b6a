"""A verb over many users: all together first, then in halves, so that one bad user neither fails nor slows the others much.

Where somebody holds a lock against them, each user alone, beginning anywhere: that costs one lock timeout for each user that is locked,
and nobody else's turn. Such waits have one budget for all that a call does, so that whoever holds locks on all of them doesn't hold up what
comes after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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


@dataclass(slots=True)
class Patience:
    """How much longer one call waits for others' locks, in all that it does for any of its users."""

    left_s: float = _LOCKED_S


async def in_halves(
    users: Sequence[T],
    act: Callable[[Sequence[T]], Awaitable[None]],
    fail: Callable[[T, asyncpg.PostgresError], Awaitable[None]],
    patience: Patience | None = None,
) -> None:
    """Has `act` done for all users, in one transaction where that goes; `fail` hears of each user for whom it never did.

    Without `patience` it has one of its own. An error after which the connection is of no use ends it at once.
    """
    waiting, patience = [users] if users else [], patience or Patience()
    while waiting:
        some = waiting.pop()
        error = await patiently(some, act, patience)
        if error is None:
            continue
        if len(some) == 1:
            await fail(some[0], error)
        elif error.sqlstate == LOCK_TIMEOUT:
            waiting += reversed([[one] for one in from_anywhere(some)])
        else:
            waiting += reversed(_halves(some))


def _halves(users: Sequence[T]) -> list[Sequence[T]]:
    middle = len(users) // 2
    return [users[:middle], users[middle:]]


def from_anywhere(users: Sequence[T]) -> list[T]:
    """The users in their order, but from anywhere on: those behind locked ones have their turn in another call."""
    start = random_below(len(users)) if users else 0
    return [*users[start:], *users[:start]]


async def patiently(
    users: Sequence[T], act: Callable[[Sequence[T]], Awaitable[None]], patience: Patience
) -> asyncpg.PostgresError | None:
    """As `attempt`, while there is patience left; a wait for a lock that was in vain is taken from it."""
    if patience.left_s <= 0:
        return asyncpg.LockNotAvailableError(_NO_TURN)
    begun_s = stopwatch_s()
    error = await attempt(users, act)
    if error is not None and error.sqlstate == LOCK_TIMEOUT:
        patience.left_s -= stopwatch_s() - begun_s
    return error


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
