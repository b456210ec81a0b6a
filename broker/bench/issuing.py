"""Rows of issuing: the raw driver, the broker on demand, the broker with prepared users."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from broker.bench.calls import Calls
from broker.bench.database import BenchDatabase
from broker.bench.figures import Figure
from broker.bench.load import Order, measure
from broker.bench.plan import Plan
from broker.bench.raw import create_users, create_users_hashing
from broker.bench.rows import Results, Row
from broker.bench.service import ON_DEMAND, POOL_NAMES, PREPARED
from broker.clock import stopwatch_s
from broker.errors import Unavailable
from broker.secret import Secret

_POOL_MARK = "-pool-"
_POOL_SHARE = 0.7
"""How much of a pool a measurement may use up: it shows what a pool gives, and one that is used further is filled meanwhile."""
_FILL_LIMIT_S = 300.0
_POLL_S = 0.1
_SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """What a row needs at hand: the plan, the database, a broker, and where the figures go."""

    plan: Plan
    database: BenchDatabase
    calls: Calls
    results: Results
    brokers: int = 1
    """How many brokers keep a pool in this database."""
    standby: Secret | None = None
    """The superuser's URL of the database's hot standby, where there is one."""


def raw_row(clients: int) -> Row:
    """The raw driver making users one by one."""
    return Row("raw driver: CREATE ROLE", clients)


def raw_hashing_row(clients: int) -> Row:
    """The raw driver making users one by one, and a verifier for each, as the broker does on demand."""
    return Row("raw driver: verifier, CREATE ROLE", clients, raw_row(clients))


def on_demand_row(clients: int) -> Row:
    """Leases whose users are made when they are asked for."""
    return Row("broker: on demand", clients, raw_row(clients))


def prepared_row(clients: int) -> Row:
    """Leases whose users were ready."""
    return Row("broker: prepared users", clients, raw_row(clients))


async def measure_raw(subject: Subject, clients: int) -> None:
    """One round of `raw_row` and of `raw_hashing_row`."""
    plan, results = subject.plan, subject.results
    for row, create in ((raw_row(clients), create_users), (raw_hashing_row(clients), create_users_hashing)):
        figure = await subject.database.raw_creations(
            create, clients=clients, seconds=plan.seconds, iterations=plan.scram_iterations
        )
        results.add(row, figure)


async def measure_on_demand(subject: Subject, clients: int) -> None:
    """One round of `on_demand_row`; its leases are revoked afterwards, untimed."""
    figure = (await measure(replace(on_demand_order(subject, clients), seconds=subject.plan.seconds))).figure
    subject.results.add(on_demand_row(clients), figure)
    await subject.calls.revoke_all(ON_DEMAND, figure.done)


async def measure_prepared(subject: Subject, clients: int) -> None:
    """One round of `prepared_row`, from a full pool and never an empty one; revoked afterwards, and the pool filled, untimed."""
    figure = await prepared_figure(subject, clients)
    subject.results.add(prepared_row(clients), figure)
    await subject.calls.revoke_all(PREPARED, figure.done)
    await pool_full(subject)


async def prepared_figure(subject: Subject, clients: int) -> Figure:
    """Leases out of the pool for the plan's seconds, or until most of it is used; a lease from elsewhere is an error."""
    return (await measure(replace(prepared_order(subject, clients), seconds=subject.plan.seconds))).figure


def prepared_order(subject: Subject, clients: int) -> Order:
    """A load that asks for most of the pool, and holds a lease from elsewhere for an error."""
    most = int(subject.plan.prepared * _POOL_SHARE)
    return subject.calls.address.creds_order(PREPARED, clients=clients, requests=most, expect=_POOL_MARK)


def on_demand_order(subject: Subject, clients: int) -> Order:
    """A load that asks for users to be made."""
    return subject.calls.address.creds_order(ON_DEMAND, clients=clients)


async def pool_full(subject: Subject) -> None:
    """Waits until the pool of prepared users is full, so that filling it disturbs no measurement.

    Raises `Unavailable` when it does not fill in 300 s.
    """
    wanted, started_s = subject.plan.prepared * subject.brokers, stopwatch_s()
    # PostgreSQL tells nobody that a role was made, so it is asked again and again.
    while (ready := await subject.database.locked_users(POOL_NAMES)) < wanted:
        if stopwatch_s() - started_s > _FILL_LIMIT_S:
            raise Unavailable(f"only {ready:,} of {wanted:,} prepared users were ready after {_FILL_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S)
    # A user shows in the database before the broker has written down that it is ready.
    await asyncio.sleep(_SETTLE_S)
