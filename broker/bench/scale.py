"""Rows of size: brokers that differ only in how many active leases their stores hold, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from broker.bench.calls import calls
from broker.bench.database import BenchDatabase
from broker.bench.filling import fill
from broker.bench.issuing import Subject, pool_full, prepared_figure
from broker.bench.plan import Plan
from broker.bench.rows import Fact, Results, Row
from broker.bench.service import PREPARED, Service, service

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
            await fill(made, database, plan, count)
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
