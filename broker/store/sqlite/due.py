"""What is to be done next, by due time.

The index runs by connection first. Each connection that has leases is visited once and the answers are merged, so the
backlog of a database that is down is stepped over, not read through.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from heapq import merge
from itertools import islice
from typing import NamedTuple

from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState
from broker.store.sqlite.cipher import Cipher, LeaseRow
from broker.store.sqlite.intents import as_json
from broker.store.sqlite.queries import SQL
from broker.store.words import Backlog

_ENDING = (LeaseState.ACTIVE, LeaseState.GRACE, LeaseState.REVOKING, LeaseState.RESERVED, LeaseState.PREPARING)
"""States of leases whose end, when it has come, is waited for; stuck ones wait for somebody."""


class Which(NamedTuple):
    """Leases in some states; of one connection, or of all but some."""

    states: Collection[LeaseState]
    connection: ConnectionNumber | None = None
    not_connections: Collection[ConnectionNumber] = ()

    def lines(self, db: sqlite3.Connection) -> Iterator[dict[str, int]]:
        """The runs of the due index that hold them, as parameters of a query."""
        connections = [self.connection] if self.connection is not None else [row[0] for row in db.execute(SQL["connections"])]
        for connection in connections:
            if connection not in self.not_connections:
                for state in self.states:
                    yield {"connection": connection, "state": int(state)}


def claim_due(
    db: sqlite3.Connection, now_ms: int, cipher: Cipher, which: Which, *, limit: int, hold_ms: int
) -> Sequence[Lease]:
    """See `Store.claim_due`."""
    numbers = _due(db, which, now_ms, limit)
    if not numbers:
        return ()
    numbers_json = as_json(numbers)
    rows = {row[0]: LeaseRow(*row) for row in db.execute(SQL["leases"], {"numbers": numbers_json})}
    since = dict(db.execute(SQL["claim"], {"numbers": numbers_json, "due": now_ms + hold_ms}).fetchall())
    return cipher.open_sound_leases(
        rows[number]._replace(epoch=rows[number].epoch + 1, due=since[number]) for number in numbers
    )


def release_claims(db: sqlite3.Connection) -> None:
    """Makes due again what was claimed and not begun. For when every owner is dead: at the start of the only process."""
    db.execute(SQL["release_claims"])


def hasten(db: sqlite3.Connection, now_ms: int, which: Which, *, limit: int) -> int:
    """Makes up to `limit` leases of each line due now; answers how many."""
    return sum(db.execute(SQL["hasten"], line | {"now": now_ms, "limit": limit}).rowcount for line in which.lines(db))


def end_connection(db: sqlite3.Connection, now_ms: int, connection: ConnectionNumber, *, limit: int) -> int:
    """Moves up to `limit` leases of a connection that are active or in their grace to revoking; answers how many."""
    return db.execute(SQL["end_connection"], {"connection": connection, "now": now_ms, "limit": limit}).rowcount


def tidy(db: sqlite3.Connection, now_ms: int, limit: int) -> int:
    """See `Store.tidy`."""
    numbers = _due(db, Which((LeaseState.GONE,)), now_ms, limit)
    db.execute(SQL["remove_idle_paths"])
    if numbers:
        db.execute(SQL["keep_highest"])
        db.execute(SQL["remove_leases"], {"numbers": as_json(numbers)})
    return len(numbers)


def next_due_ms(db: sqlite3.Connection, which: Which) -> int | None:
    """See `Store.next_due_ms`."""
    firsts = (db.execute(SQL["first_due"], line).fetchone()[0] for line in which.lines(db))
    return min((first for first in firsts if first is not None), default=None)


def due_count(db: sqlite3.Connection, which: Which, *, until_ms: int, at_most: int) -> int:
    """How many fall due until then, counted no further than `at_most`."""
    count = 0
    for line in which.lines(db):
        count += len(db.execute(SQL["due"], line | {"until": until_ms, "limit": at_most - count}).fetchall())
    return count


def backlog(db: sqlite3.Connection, now_ms: int, *, at_most: int) -> Backlog:
    """See `Store.backlog`. Looks only at rows that wait: twice `at_most` together, and one of each run of the index."""
    count, first = db.execute(SQL["overdue_claimed"], {"limit": at_most}).fetchone()
    oldest = [first]
    for line in Which(_ENDING).lines(db):
        # Of a run of the index its first row is enough: a row before it that is passed over was claimed, and is counted as older.
        limit = at_most if count < at_most else 1
        more, first = db.execute(SQL["overdue_unclaimed"], line | {"until": now_ms, "limit": limit}).fetchone()
        count += more
        oldest.append(first)
    return Backlog(min(count, at_most), min((since for since in oldest if since is not None), default=None))


def numbers_in(db: sqlite3.Connection, which: Which, *, after: LeaseNumber, limit: int) -> Sequence[int]:
    """Numbers of leases in states that few rows are in, in order."""
    found: list[int] = []
    for line in which.lines(db):
        found += (row[0] for row in db.execute(SQL["leases_in_rare_state"], line | {"after": after, "limit": limit}))
    return sorted(found)[:limit]


def _due(db: sqlite3.Connection, which: Which, until_ms: int, limit: int) -> Sequence[int]:
    with ExitStack() as cursors:
        runs = [
            cursors.enter_context(closing(db.execute(SQL["due"], line | {"until": until_ms, "limit": limit})))
            for line in which.lines(db)
        ]
        return [number for _, number in islice(merge(*runs), limit)]
