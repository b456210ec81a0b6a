"""Verbs over many users: who is locked fails alone, and all locked ones together take a limited time."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import pytest

from broker_postgresql import batch

USERS = range(64)
LOCK_TIMEOUT_S = 1.0


class Server:
    """Does what it is asked for users, but for those that are locked, whose lock it waits for."""

    def __init__(self, locked: set[int]) -> None:
        self.now_s = 0.0
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        self._locked = locked

    async def act(self, users: Sequence[int]) -> None:
        """One transaction for all."""
        if self._locked.intersection(users):
            self.now_s += LOCK_TIMEOUT_S
            raise asyncpg.LockNotAvailableError("canceling statement due to lock timeout")
        self.done.update(users)

    async def fail(self, user: int, error: asyncpg.PostgresError) -> None:
        """Hears of a user for whom it never did."""
        assert user not in self.failed
        self.failed[user] = str(error)


async def run(monkeypatch: pytest.MonkeyPatch, locked: set[int]) -> Server:
    """A batch of all users, of whom these are locked."""
    server = Server(locked)
    monkeypatch.setattr(batch, "stopwatch_s", lambda: server.now_s)
    await batch.in_halves(USERS, server.act, server.fail)
    assert server.done | set(server.failed) == set(USERS)
    assert not server.done & set(server.failed)
    return server


async def test_locked_users_cost_one_wait_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few locked users, wherever they stand, fail alone, after one wait of the batch and one of each."""
    server = await run(monkeypatch, {3, 31, 32, 60})
    assert set(server.failed) == {3, 31, 32, 60}
    assert server.now_s == 5 * LOCK_TIMEOUT_S


async def test_waiting_for_locks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all are locked the waiting ends after some, and the others hear that their turn did not come."""
    server = await run(monkeypatch, set(USERS))
    assert server.now_s == 8 * LOCK_TIMEOUT_S
    assert sum("turn did not come" in text for text in server.failed.values()) == 57


async def test_users_behind_locked_ones_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that stand behind many locked ones are not passed over in every call: it may begin with them."""
    monkeypatch.setattr(batch, "random_below", lambda count: count - 4)
    server = await run(monkeypatch, set(range(60)))
    assert server.done == {60, 61, 62, 63}


async def test_patience_is_one_for_all_that_a_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one batch waited, the next one of the same call waits no more; who is not locked is done as long as there is some left."""
    server, patience = Server(set(range(6))), batch.Patience()
    monkeypatch.setattr(batch, "stopwatch_s", lambda: server.now_s)
    for users in (range(6), range(6, 9), range(6)):
        server.failed.clear()
        await batch.in_halves(users, server.act, server.fail, patience)
    assert server.done == {6, 7, 8}
    assert server.now_s == 8 * LOCK_TIMEOUT_S
    assert sum("turn did not come" in text for text in server.failed.values()) == 6


async def test_users_one_by_one_share_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is done for each user alone ends with the same words."""
    server, patience = Server(set(USERS)), batch.Patience(2 * LOCK_TIMEOUT_S)
    monkeypatch.setattr(batch, "stopwatch_s", lambda: server.now_s)
    errors = [await batch.patiently([user], server.act, patience) for user in USERS]
    assert ["turn did not come" in str(error) for error in errors] == [False, False] + [True] * 62
