"""Rows of size: brokers that differ only in how many active leases their stores hold, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from broker.bench.calls import calls
from broker.bench.database import BenchDatabase
from broker.bench.issuing import Subject, pool_full, prepared_figure
from broker.bench.plan import Plan
from broker.bench.rows import Fact, Results, Row
from broker.bench.service import PREPARED, QUICK, Service, configured, service
from broker.clock import SystemClock
from broker.ids import Numbers
from broker.model import Accessor, ConnectionNumber, LeaseFacts, LeaseNumber, LeaseState, Terms, TokenNumber, UserName
from broker.store.protocol import Move, Reservation, Store
from broker.store.sqlite.store import SqliteStore

_HOUR_MS = 3_600_000
_BATCH = 2_000
_LEASES_PER_TOKEN = 100_000
"""Below the usual limit, so that the limits stay on."""
_CLIENTS = (1, 32)
_QUIET_S = 1.0


@dataclass(frozen=True, slots=True)
class Sized:
    """A broker whose store holds `count` leases beside those that are measured."""

    count: int
    service: Service
    subject: Subject


def sized_row(count: int, clients: int, smallest: int) -> Row:
    """Leases out of the pool with `count` others in the store, compared with the smallest store."""
    base = None if count == smallest else sized_row(smallest, clients, smallest)
    return Row(f"broker: prepared users, {count:,} leases in the store", clients, base, f"{smallest:,}")


@asynccontextmanager
async def sized_brokers(plan: Plan, database: BenchDatabase, results: Results) -> AsyncIterator[list[Sized]]:
    """One running broker for each count of the plan; how long its start took and its memory are among the facts."""
    async with AsyncExitStack() as stack:
        brokers: list[Sized] = []
        for count in plan.scale:
            made = await stack.enter_async_context(service())
            await _fill(made, database, plan, count)
            seconds = await made.start()
            open_calls = await stack.enter_async_context(calls(made.address))
            await asyncio.sleep(_QUIET_S)
            results.facts.append(Fact(f"start with {count:,} leases", seconds, "s until ready"))
            results.facts.append(Fact(f"memory with {count:,} leases", made.resident_mb(), "MB after the start"))
            brokers.append(Sized(count, made, Subject(plan, database, open_calls, results, len(plan.scale))))
        await pool_full(brokers[-1].subject)
        yield brokers


async def measure_sized(brokers: Sequence[Sized]) -> None:
    """One round: each broker after the other, with one client and with many."""
    for clients in _CLIENTS:
        for broker in brokers:
            figure = await prepared_figure(broker.subject, clients)
            broker.subject.results.add(sized_row(broker.count, clients, brokers[0].count), figure)
            await broker.subject.calls.revoke_all(PREPARED, figure.done)
            await pool_full(broker.subject)


def note_memory(brokers: Sequence[Sized]) -> None:
    """Writes down what each broker holds after the work."""
    for broker in brokers:
        fact = Fact(f"memory with {broker.count:,} leases", broker.service.resident_mb(), "MB after the measurements")
        broker.subject.results.facts.append(fact)


async def _fill(made: Service, database: BenchDatabase, plan: Plan, count: int) -> None:
    """Writes `count` active leases into the broker's store; their users do not exist."""
    async with configured(made, database.dsn, plan) as open_calls:
        for _ in range(0, count, _LEASES_PER_TOKEN):
            await open_calls.write("auth/token/create", {"ttl": "24h"})
    await made.stop()
    clock = SystemClock()
    store = await SqliteStore.open(made.state, made.master_key(), clock)
    try:
        numbers = Numbers(clock, above=await store.highest_number())
        connection = await _connection_number(store)
        # The first is the root token, which is to measure with.
        tokens = [token.number for token in await store.tokens(after=TokenNumber(0), limit=1_000)][1:]
        for start, size in _batches(count):
            token = tokens[start // _LEASES_PER_TOKEN]
            await _write(store, [_reservation(LeaseNumber(numbers.next()), connection, token) for _ in range(size)])
    finally:
        await store.close()


async def _write(store: Store, reservations: Sequence[Reservation]) -> None:
    await store.reserve(reservations)
    await store.move(
        [
            Move(number=lease.number, expect=(LeaseState.RESERVED,), to=LeaseState.ACTIVE, due_in_ms=lease.due_in_ms)
            for lease in reservations
        ]
    )


async def _connection_number(store: Store) -> ConnectionNumber:
    documents = await store.changes_since(0)
    return next(ConnectionNumber(document.number) for document in documents if document.name == QUICK)


def _reservation(number: LeaseNumber, connection: ConnectionNumber, token: TokenNumber) -> Reservation:
    facts = LeaseFacts(
        path="database/creds/crowd",
        role="crowd",
        role_revision=1,
        connection_name=QUICK,
        username=UserName(f"v-root-crowd-{number}"),
        identity="16384",
        display_name="root",
        accessor=Accessor("0" * 24),
        terms=Terms(),
        expires_ms=(number >> 20) + 12 * _HOUR_MS,
        max_expires_ms=(number >> 20) + 24 * _HOUR_MS,
    )
    return Reservation(number=number, connection=connection, token=token, facts=facts, due_in_ms=12 * _HOUR_MS)


def _batches(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _BATCH):
        yield start, min(_BATCH, count - start)
