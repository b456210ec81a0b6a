"""How SQLite carries out the statements: no table is read through on the hot path, and a backlog costs nothing."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model import LeaseState
from broker.store.sqlite.due import Which, backlog, due_count, next_due_ms
from broker.store.sqlite.lists import tally
from broker.store.sqlite.queries import SQL
from broker.store.sqlite.schema import migrations
from broker.store.sqlite.store import SqliteStore
from broker.store.words import Limits, Move, TokenEnd

READS_THROUGH = {
    "crowded_paths": "path",
    "live_paths": "path",
    "pool_paths": "path",
    "remove_idle_paths": "path",
}
"""Statements that look at every row: counts, and lists of paths, of which there are few."""
HOT = (
    "reserve",
    "hand_out",
    "move_on",
    "move_to_revoking",
    "move_to_gone",
    "places",
    "lease",
    "asked",
    "token",
    "due",
    "claim",
)


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:")
    for script in migrations().values():
        db.executescript(script)
    yield db
    db.close()


def plan(db: sqlite3.Connection, name: str) -> list[str]:
    parameters = dict.fromkeys(re.findall(r":(\w+)", SQL[name]), 0) | {"numbers": "[]"}
    return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {SQL[name]}", parameters)]


@pytest.mark.parametrize("name", sorted(SQL))
def test_no_statement_reads_a_table_through(name: str, empty: sqlite3.Connection) -> None:
    """Every statement finds its rows by a key or an index, but for the few that count or list all."""
    # This index holds nothing but what is asked for.
    scanned = [step for step in plan(empty, name) if step.startswith("SCAN") and "lease_unsettled" not in step]
    tables = {step.split()[1] for step in scanned} & {"lease", "token", "document", "vital", "path"}
    assert tables == ({READS_THROUGH[name]} if name in READS_THROUGH else set())


@pytest.mark.parametrize("name", HOT)
def test_hot_path_sorts_nothing(name: str, empty: sqlite3.Connection) -> None:
    """Neither a temporary table nor a sort stands between a request and its row."""
    assert not [step for step in plan(empty, name) if "TEMP B-TREE" in step]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("due", "lease_by_due"),
        ("first_due", "lease_by_due"),
        ("count", "lease_by_due"),
        ("hasten", "lease_by_due"),
        ("prepared", "lease_in_pool"),
        ("pool_size", "lease_in_pool"),
        ("unsettled", "lease_unsettled"),
        ("asked", "lease_by_ask"),
        ("numbers_of_family", "lease_by_family"),
        ("end_family", "lease_by_family"),
        ("clamp_leases", "lease_by_token"),
        ("end_leases_of_tokens", "lease_by_token"),
        ("expired_tokens", "token_by_expiry"),
        ("with_children", "token_by_parent"),
        ("children", "token_by_parent"),
    ],
)
def test_statement_uses_its_index(name: str, index: str, empty: sqlite3.Connection) -> None:
    """A partial index is used only where its predicate is repeated, which a careless change would undo."""
    assert any(index in step for step in plan(empty, name))


@pytest.fixture
def steps(store: SqliteStore) -> Callable[[Callable[[sqlite3.Connection], object]], int]:
    """How many instructions of SQLite's machine some work takes."""

    def count(work: Callable[[sqlite3.Connection], object]) -> int:
        db, counted = store._reader._far, 0

        def tick() -> int:
            nonlocal counted
            counted += 1
            return 0

        db.set_progress_handler(tick, 1)
        try:
            work(db)
        finally:
            db.set_progress_handler(None, 0)
        return counted

    return count


async def test_backlog_of_a_dead_database_costs_nothing(book: Any, steps: Any) -> None:
    """What is due elsewhere is found with the same work, however much waits for a connection that is left out."""
    token = await book.token()
    await book.active(token, connection=1, due_in_ms=0)
    await book.active(token, connection=2, due_in_ms=0)
    now = book.store.now_ms()

    def look(db: sqlite3.Connection) -> None:
        which = Which([LeaseState.ACTIVE], None, [1])
        assert len(claim_due_read_only(db, which)) == 1
        next_due_ms(db, Which([LeaseState.ACTIVE]))
        due_count(db, which, until_ms=now, at_most=10)

    few = steps(look)
    waiting = [book.reservation(token, connection=1) for _ in range(3000)]
    await book.store.reserve(waiting)
    await book.store.move(
        [Move(number=one.number, expect=[LeaseState.RESERVED], to=LeaseState.ACTIVE, due_in_ms=0) for one in waiting]
    )
    assert steps(look) <= few * 1.1


@pytest.mark.parametrize("hold_ms", [0, 3_600_000, None])
async def test_backlog_is_told_with_the_same_work_however_great(book: Any, steps: Any, hold_ms: int | None) -> None:
    """Whether what waits was never claimed, is claimed, or was claimed and is due again."""
    token, work = await book.token(), []
    for count in (20, 3_000):
        waiting = [book.reservation(token) for _ in range(count)]
        await book.store.reserve(waiting)
        await book.store.move(
            [Move(number=one.number, expect=[LeaseState.RESERVED], to=LeaseState.ACTIVE, due_in_ms=0) for one in waiting]
        )
        if hold_ms is not None:
            await book.store.claim_due([LeaseState.ACTIVE], limit=count, hold_ms=hold_ms)
        now = book.store.now_ms()
        work.append(steps(lambda db, now=now: backlog(db, now, at_most=10)))
        assert (await book.store.backlog(at_most=10)).count == 10
    assert work[1] <= work[0] * 1.1


async def test_stuck_leases_are_counted_with_the_same_work_however_many_live(book: Any, steps: Any) -> None:
    """What is asked each minute reads nothing of what is not stuck."""
    token = await book.token()
    await book.moved(await book.active(token), LeaseState.ACTIVE, LeaseState.STUCK)

    def look(db: sqlite3.Connection) -> None:
        assert tally(db, Which([LeaseState.STUCK]))[LeaseState.STUCK] == 1

    few = steps(look)
    living = [book.reservation(token) for _ in range(3000)]
    await book.store.reserve(living)
    await book.store.move(
        [Move(number=one.number, expect=[LeaseState.RESERVED], to=LeaseState.ACTIVE, due_in_ms=0) for one in living]
    )
    assert steps(look) <= few * 1.1


def claim_due_read_only(db: sqlite3.Connection, which: Which) -> list[int]:
    """The rows that a claim would take."""
    return [row[1] for line in which.lines(db) for row in db.execute(SQL["due"], line | {"until": 1 << 60, "limit": 10})]


LIVE = [LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.REVOKING, LeaseState.STUCK]
MOVES = {
    "activate": (LIVE, LeaseState.ACTIVE),
    "revoke": ([*LIVE, LeaseState.PREPARED], LeaseState.REVOKING),
    "stick": ([*LIVE, LeaseState.PREPARED], LeaseState.STUCK),
    "gone": ([*LIVE, LeaseState.PREPARED], LeaseState.GONE),
}
ACTIONS = ["reserve", "pool", "hand out", "end token", "end path", "tidy", *MOVES]


class Story:
    """Things that happen to a few leases of a few tokens, each by the number that picks them."""

    def __init__(self, book: Any) -> None:
        self.book, self.store = book, book.store
        self.tokens: list[Any] = []
        self.leases: list[Any] = []

    async def happens(self, action: str, pick: int) -> None:
        if action in MOVES:
            await self.move(*MOVES[action], pick)
        else:
            await getattr(self, action.replace(" ", "_"))(pick)

    async def reserve(self, pick: int) -> None:
        asked = self.book.reservation(self.tokens[pick % 2], f"m/creds/{pick % 3}", limits=Limits(per_role=4))
        if list(await self.store.reserve([asked])) == [None]:
            self.leases.append(asked.number)

    async def pool(self, pick: int) -> None:
        self.leases.append(await self.book.pooled(f"m/creds/{pick % 3}"))

    async def hand_out(self, pick: int) -> None:
        lease = await self.picked(pick)
        if lease is not None:
            await self.store.hand_out([self.book.handout(lease.number, self.tokens[pick % 2], lease.facts.path)])

    async def move(self, expect: list[LeaseState], to: LeaseState, pick: int) -> None:
        lease = await self.picked(pick)
        if lease is not None and (lease.token or to is not LeaseState.ACTIVE):
            await self.store.move([Move(number=lease.number, expect=expect, to=to, due_in_ms=0)])

    async def end_token(self, pick: int) -> None:
        await self.store.end_tokens([self.tokens[pick % 2]], children=TokenEnd.WITH_CHILDREN)

    async def end_path(self, pick: int) -> None:
        await self.store.end_under(f"m/creds/{pick % 3}")

    async def tidy(self, pick: int) -> None:
        await self.store.tidy(pick)

    async def picked(self, pick: int) -> Any:
        return await self.store.lease(self.leases[pick % len(self.leases)]) if self.leases else None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=25))
async def test_counts_agree_with_the_rows(actions: list[tuple[str, int]], store: SqliteStore, book_of: Any) -> None:
    """Whatever happens in whatever order, the counts that limits rest on are those of the rows."""
    story = Story(book_of(store))
    story.tokens = [await story.book.token() for _ in range(2)]
    for action, pick in actions:
        await story.happens(action, pick)
    for table, key, column in (("path", "family", "family"), ("token", "number", "token")):
        rows = f"SELECT count(*) FROM lease WHERE {column} = {table}.{key} AND token <> 0 AND state IN (0, 3, 4, 5)"
        assert store._reader.row(f"SELECT * FROM {table} WHERE live <> ({rows})", {}) is None
