"""Reads beside the writer. In WAL mode a reader sees the last commit and waits for nobody."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from broker.store.sqlite.connection import open_for_reading, translated

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """Two read connections: one for point reads on the event loop (some 10 microseconds), one for lists in a thread."""

    def __init__(self, path: Path) -> None:
        self._near = open_for_reading(path)
        self._far = open_for_reading(path)
        self._thread = ThreadPoolExecutor(1, "store-reader")

    def row(self, sql: str, parameters: Mapping[str, object]) -> tuple[Any, ...] | None:
        """The one row of a query that an index answers, at once, in the calling thread.

        Raises StoreUnavailable, or StoreDamaged.
        """
        with translated():
            # All rows are fetched, so that the statement is over and holds no old snapshot.
            rows = self._near.execute(sql, parameters).fetchall()
        return rows[0] if rows else None

    async def scan(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work(db, ...)` gives, run in the reader's thread. Raises what `row` raises, and what `work` does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work, args, kwargs)

    async def close(self) -> None:
        """Waits for the scan under way and closes both connections."""
        await asyncio.to_thread(self._thread.shutdown)
        self._near.close()
        self._far.close()

    def _work(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        with translated():
            # One snapshot, however many statements it takes: a row that moves from one state to another must not slip between two of them.
            self._far.execute("BEGIN")
            try:
                return work(self._far, *args, **kwargs)
            finally:
                self._far.execute("COMMIT")
