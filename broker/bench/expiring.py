"""Rows of a mass expiry: many leases that end in the same second, and what new leases get meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from broker.bench.figures import Figure
from broker.bench.issuing import Subject, on_demand_order, pool_full, prepared_order
from broker.bench.load import Load, Order, measure, open_load
from broker.bench.revoking import issue, raw_drop_row
from broker.bench.rows import Row
from broker.bench.service import CROWD, ON_DEMAND, PREPARED, Service, write_role_due
from broker.clock import stopwatch_s
from broker.errors import Unavailable

_CLIENTS = 8
_LONGEST_TTL_S = 180
_TRIAL = 400
"""Leases made to see how fast they can be made."""
_SLACK = 1.6
"""How much longer than the trial foretells making the leases may take."""
_PAUSED_BEFORE_S = 0.3
_PAUSED_AFTER_S = 1.3
"""A TTL is whole seconds, so the leases fall due within one second: the broker sleeps through it and wakes to all of them."""
_DRAIN_LIMIT_S = 300.0
_POLL_S = 0.02
_DUE_NAMES = "v-root-due-"


@dataclass(frozen=True, slots=True)
class NewLeases:
    """The leases that are asked for while others end."""

    label: str
    role: str
    order: Callable[[Subject, int], Order]


FROM_POOL = NewLeases("prepared", PREPARED, prepared_order)
ON_DEMAND_NEW = NewLeases("on demand", ON_DEMAND, on_demand_order)


def due_row(count: int, meanwhile: NewLeases | None = None) -> Row:
    """Leases that end in the same second; what is timed is from all of them being due to all of their users being gone."""
    added = f", {meanwhile.label} leases asked for meanwhile" if meanwhile else ""
    return Row(f"broker: {count:,} leases due at once{added}", 0, raw_drop_row(count))


def alone_row(new: NewLeases) -> Row:
    """New leases while nothing ends."""
    return Row(f"broker: {new.label}, nothing else to do", _CLIENTS)


def meanwhile_row(count: int, new: NewLeases) -> Row:
    """New leases while many end."""
    return Row(f"broker: {new.label}, while {count:,} leases end", _CLIENTS, alone_row(new), "alone")


async def write_due_roles(subject: Subject) -> None:
    """One role for each TTL, so that leases made one after the other can end together."""
    for seconds in range(1, _LONGEST_TTL_S + 1):
        await write_role_due(subject.calls, seconds)


async def measure_due(subject: Subject, service: Service, count: int) -> None:
    """One round of `due_row`."""
    async with _all_due(subject, service, count):
        subject.results.add(due_row(count), await _drained(subject, count))


async def measure_due_meanwhile(subject: Subject, service: Service, count: int, new: NewLeases) -> None:
    """One round of `alone_row`, `due_row` and `meanwhile_row`; the new leases are revoked afterwards, untimed."""
    order = new.order(subject, _CLIENTS)
    alone = (await measure(replace(order, seconds=subject.plan.seconds))).figure
    subject.results.add(alone_row(new), alone)
    await subject.calls.revoke_all(new.role, alone.done)
    await pool_full(subject)
    async with open_load(order) as load, _all_due(subject, service, count):
        load.go()
        drained = await _drained(subject, count)
        meanwhile = await _stopped(load)
    subject.results.add(due_row(count, new), drained)
    subject.results.add(meanwhile_row(count, new), meanwhile)
    await subject.calls.revoke_all(new.role, meanwhile.done)
    await pool_full(subject)


async def _stopped(load: Load) -> Figure:
    load.stop()
    return (await load.result()).figure


@asynccontextmanager
async def _all_due(subject: Subject, service: Service, count: int) -> AsyncIterator[None]:
    """Makes the leases, and yields at the moment in which the broker wakes and finds all of them due."""
    due_s = await _leases_due(subject, count)
    await asyncio.sleep(due_s - _PAUSED_BEFORE_S - stopwatch_s())
    service.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(due_s + _PAUSED_AFTER_S - stopwatch_s())
    finally:
        service.signal(signal.SIGCONT)
    yield


async def _leases_due(subject: Subject, count: int) -> float:
    """Makes `count` leases; answers when they fall due, by `stopwatch_s`. Raises `Unavailable` when it took too long."""
    trial = min(_TRIAL, count)
    started_s = stopwatch_s()
    await issue(subject.calls, CROWD, trial)
    due_in_s = (stopwatch_s() - started_s) * count / trial * _SLACK + 3
    if due_in_s > _LONGEST_TTL_S:
        raise Unavailable(f"making {count:,} leases would take longer than {_LONGEST_TTL_S} s; ask for fewer with --due")
    await subject.calls.revoke_all(CROWD, trial)
    order = subject.calls.address.creds_order("due-{ttl}", clients=_CLIENTS, requests=count, due_in_s=due_in_s)
    async with open_load(order) as load:
        due_s = stopwatch_s() + due_in_s
        load.go()
        figure = (await load.result()).figure
    if figure.errors or stopwatch_s() > due_s - 1:
        raise Unavailable(f"the leases could not be made in time: {figure.first_error or f'it took {figure.seconds:.0f} s'}")
    return due_s


async def _drained(subject: Subject, count: int) -> Figure:
    started_s, seconds = stopwatch_s(), 0.0
    # PostgreSQL tells nobody that a role is gone, so it is asked again and again; to count them each time would slow what is timed.
    while seconds < _DRAIN_LIMIT_S and await subject.database.has_user_from(_DUE_NAMES):
        await asyncio.sleep(_POLL_S)
        seconds = stopwatch_s() - started_s
    left = await subject.database.users_like(f"{_DUE_NAMES}%")
    return Figure(done=count - left, seconds=seconds, errors=left, first_error="users were left" if left else "")
