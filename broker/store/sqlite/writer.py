"""The one thread that writes: everything that waits is carried out in one transaction and made durable by one flush."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from broker.clock import Clock
from broker.errors import StoreUnavailable
from broker.store.sqlite.connection import commit_error, store_error
from broker.store.sqlite.files import OpenFiles
from broker.store.sqlite.vitals import Vitals

P = ParamSpec("P")
T = TypeVar("T")

MOST_IN_GROUP = 256
"""Operations in one transaction at most, so that the first of them does not wait for a long queue."""
MOST_WAITING = 4096
"""Past this, new operations are refused at once."""


class _Item(NamedTuple):
    work: Callable[[sqlite3.Connection, int], Any]
    answer: asyncio.Future[Any]


class _Done(NamedTuple):
    result: Any


_Outcome = _Done | Exception


class Writer:
    """Owns the write connection. Each operation has a savepoint of its own: one that fails is undone and fails alone."""

    def __init__(self, db: sqlite3.Connection, files: OpenFiles, clock: Clock, vitals: Vitals) -> None:
        """Starts the thread; answers go to the running event loop."""
        self._db = db
        self._files = files
        self._clock = clock
        self._vitals = vitals
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    async def do(self, work: Callable[Concatenate[sqlite3.Connection, int, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work(db, now_ms, ...)` gives, durable on return. It runs in the thread and must not end the transaction.

        Cancellation stops the waiting, not the work. Raises StoreUnavailable, having done nothing, when the write fails,
        too many operations wait, or the store is closed; OutcomeUnknown when the disc did not confirm; else what `work` raises.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._queue.qsize() >= MOST_WAITING:
            raise StoreUnavailable(f"{MOST_WAITING} writes wait for the store already: it may be asked again shortly")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Item(partial(_call, work, args, kwargs), answer))
        return await answer

    async def close(self) -> None:
        """Carries out what was accepted, with the clock and the audit head, and closes the connection."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        open_for_more = True
        while open_for_more:
            group, open_for_more = self._next_group()
            if not open_for_more:
                self._vitals.insist()
            outcomes = self._carry_out(group)
            if group:
                self._loop.call_soon_threadsafe(_settle, group, outcomes)
        self._db.close()

    def _next_group(self) -> tuple[Sequence[_Item], bool]:
        """Waits for an operation and takes all that wait with it; False when there will be no more."""
        group: list[_Item] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == MOST_IN_GROUP:
                return group, True
            try:
                item = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _carry_out(self, group: Sequence[_Item]) -> Sequence[_Outcome]:
        try:
            return self._commit(group)
        except Exception as failure:  # noqa: BLE001 - the thread must live on, and each caller hears of it
            self._roll_back()
            # An exception object of its own for each caller: tracebacks grow on it where it is raised.
            return [commit_error(failure) for _ in group]

    def _roll_back(self) -> None:
        # SQLite has often done so by itself by now, on a full disc for one; where even this fails, the next BEGIN fails too.
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _commit(self, group: Sequence[_Item]) -> Sequence[_Outcome]:
        now_ms = self._clock.now_ms()
        self._files.check()
        self._db.execute("BEGIN IMMEDIATE")
        outcomes = [self._attempt(item, now_ms) for item in group]
        kept = self._vitals.before_commit(self._db, now_ms)
        self._db.execute("COMMIT")
        self._vitals.after_commit(kept)
        return outcomes

    def _attempt(self, item: _Item, now_ms: int) -> _Outcome:
        self._db.execute("SAVEPOINT operation")
        try:
            outcome: _Outcome = _Done(item.work(self._db, now_ms))
        except Exception as failure:
            if not self._db.in_transaction:
                raise  # SQLite gave up the whole transaction, and with it the group.
            self._db.execute("ROLLBACK TO operation")
            outcome = store_error(failure) if isinstance(failure, sqlite3.Error) else failure
        self._db.execute("RELEASE operation")
        return outcome


def _call(work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], db: sqlite3.Connection, now_ms: int) -> T:
    return work(db, now_ms, *args, **kwargs)


def _settle(group: Sequence[_Item], outcomes: Sequence[_Outcome]) -> None:
    for item, outcome in zip(group, outcomes, strict=True):
        if item.answer.done():
            continue  # The caller was cancelled meanwhile.
        if isinstance(outcome, _Done):
            item.answer.set_result(outcome.result)
        else:
            item.answer.set_exception(outcome)
