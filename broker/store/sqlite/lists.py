"""Lists and counts of leases, read beside the writer. Each function is the work of one scan of the reader."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, TokenNumber
from broker.store.sqlite.cipher import Cipher, LeaseRow
from broker.store.sqlite.due import Which, numbers_in
from broker.store.sqlite.intents import as_json
from broker.store.sqlite.queries import SQL
from broker.store.words import CrowdedTokens, Tally

_COMMON_STATES = frozenset({LeaseState.ACTIVE, LeaseState.GONE})
"""Most rows are in these; so lists by number go through the table instead of gathering a whole run of an index."""
_EARLIEST = -(1 << 63)


def prepared(db: sqlite3.Connection, cipher: Cipher, path: str, limit: int, *, after: LeaseNumber) -> Sequence[Lease]:
    """See `Store.prepared`."""
    return _leases(db, cipher, "prepared", {"family": cipher.family(path), "after": after, "limit": limit})


def unsettled(
    db: sqlite3.Connection, cipher: Cipher, limit: int, *, connection: ConnectionNumber | None, after: LeaseNumber | None
) -> Sequence[Lease]:
    """See `Store.unsettled`. Others' rows are stepped over unopened."""
    return _leases(db, cipher, "unsettled", {"limit": limit, "connection": connection, "after": after or 0})


def leases_in(
    db: sqlite3.Connection, cipher: Cipher, states: Collection[LeaseState], *, after: LeaseNumber, limit: int
) -> Sequence[Lease]:
    """See `Store.leases_in`."""
    found: list[int] = []
    for state in _COMMON_STATES.intersection(states):
        rows = db.execute(SQL["leases_in_common_state"], {"state": int(state), "after": after, "limit": limit})
        found += (row[0] for row in rows)
    if rare := set(states) - _COMMON_STATES:
        found += numbers_in(db, Which(rare), after=after, limit=limit)
    return _leases(db, cipher, "leases", {"numbers": as_json(sorted(found)[:limit])})


def leases(db: sqlite3.Connection, cipher: Cipher, numbers: Collection[LeaseNumber]) -> Sequence[Lease]:
    """See `Store.leases`."""
    return _leases(db, cipher, "leases", {"numbers": as_json(numbers)})


def leases_at(
    db: sqlite3.Connection,
    cipher: Cipher,
    connection: ConnectionNumber,
    state: LeaseState,
    *,
    beyond: Lease | None,
    limit: int,
) -> Sequence[Lease]:
    """See `Store.leases_at`."""
    due, after = (_EARLIEST, 0) if beyond is None else (beyond.due_ms, beyond.number)
    values = {"connection": connection, "state": int(state), "due": due, "after": after, "limit": limit}
    return _leases(db, cipher, "leases_at", values)


def numbers_of_path(db: sqlite3.Connection, family: int, *, after: LeaseNumber, limit: int) -> Sequence[LeaseNumber]:
    """Numbers of live leases of one path, in order."""
    rows = db.execute(SQL["numbers_of_family"], {"family": family, "after": after, "limit": limit})
    return [LeaseNumber(number) for (number,) in rows]


def live_paths(db: sqlite3.Connection, cipher: Cipher) -> Sequence[str]:
    """See `Store.list_paths`."""
    return sorted(cipher.open_path(*row) for row in db.execute(SQL["live_paths"]))


def last_end_ms(db: sqlite3.Connection, family: int, *, after: int, limit: int) -> tuple[int | None, int | None]:
    """The latest end of the active among the next `limit` live leases of a path, and the number of the last of them; None: no more."""
    latest, last = db.execute(SQL["last_of_family"], {"family": family, "after": after, "limit": limit}).fetchone()
    return latest, last


def last_end_at_ms(db: sqlite3.Connection, connection: ConnectionNumber) -> int | None:
    """See `Store.last_end_at_ms`."""
    latest: int | None = db.execute(SQL["last_of_connection"], {"connection": connection}).fetchone()[0]
    return latest


def crowded_paths(db: sqlite3.Connection, cipher: Cipher, least: int) -> Mapping[str, int]:
    """See `Store.crowded_paths`."""
    return {cipher.open_path(family, path): live for family, path, live in db.execute(SQL["crowded_paths"], {"least": least})}


def crowded_tokens(db: sqlite3.Connection, least: int, *, after: TokenNumber, limit: int) -> CrowdedTokens:
    """See `Store.crowded_tokens`."""
    last, count = db.execute(SQL["last_of_tokens"], {"after": after, "limit": limit}).fetchone()
    rows = db.execute(SQL["crowded_tokens"], {"after": after, "last": last, "least": least})
    live = {TokenNumber(number): held for number, held in rows}
    return CrowdedTokens(live, TokenNumber(last) if count == limit else None)


def pool_paths(db: sqlite3.Connection, cipher: Cipher) -> Sequence[str]:
    """See `Store.list_pools`."""
    return sorted(cipher.open_path(*row) for row in db.execute(SQL["pool_paths"]))


def pool_size(db: sqlite3.Connection, family: int) -> int:
    """See `Store.pool_size`."""
    return int(db.execute(SQL["pool_size"], {"family": family}).fetchone()[0])


def tally(db: sqlite3.Connection, which: Which) -> Tally:
    """See `Store.tally`. Reads the runs of the due index that hold them: some 50 ms for a million leases."""
    counts: Counter[LeaseState] = Counter()
    for line in which.lines(db):
        counts[LeaseState(line["state"])] += db.execute(SQL["count"], line).fetchone()[0]
    return Tally(by_state={state: count for state, count in counts.items() if count})


def _leases(db: sqlite3.Connection, cipher: Cipher, query: str, parameters: Mapping[str, object]) -> Sequence[Lease]:
    return cipher.open_sound_leases(LeaseRow(*row) for row in db.execute(SQL[query], parameters))
