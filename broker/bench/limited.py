"""Rows of a limited login: brokers with a superuser's login and with a plain CREATEROLE one, side by side, both with many live users."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from broker.bench.database import BenchDatabase
from broker.bench.issuing import Subject, pool_full, prepared_figure
from broker.bench.plan import Plan
from broker.bench.revoking import issue
from broker.bench.rows import Fact, Results, Row
from broker.bench.service import CROWD, PREPARED, configured, service
from broker.clock import stopwatch_s

SUPERUSER, LIMITED = "superuser", "plain CREATEROLE"
_CLIENTS = (1, 32)


@dataclass(frozen=True, slots=True)
class Login:
    """A broker with one of the two logins."""

    kind: str
    subject: Subject


def prepared_row(kind: str, live: int, clients: int) -> Row:
    """Leases out of the pool beside `live` others, compared with the superuser's."""
    base = None if kind == SUPERUSER else prepared_row(SUPERUSER, live, clients)
    return Row(f"broker: prepared users, {kind} login, {live:,} live users", clients, base, SUPERUSER)


def revoke_row(kind: str, live: int) -> Row:
    """These leases revoked in one call while the `live` others stay, compared with the superuser's."""
    base = None if kind == SUPERUSER else revoke_row(SUPERUSER, live)
    return Row(f"broker: revoke those at once, {kind} login, {live:,} live users", 0, base, SUPERUSER)


@asynccontextmanager
async def logins(plan: Plan, database: BenchDatabase, results: Results) -> AsyncIterator[list[Login]]:
    """Both brokers, each with as many live users as the plan says; how fast these were made is among the facts."""
    async with AsyncExitStack() as stack:
        dsns = {SUPERUSER: database.dsn, LIMITED: await stack.enter_async_context(database.limited_login())}
        found: list[Login] = []
        for kind, dsn in dsns.items():
            made = await stack.enter_async_context(service())
            open_calls = await stack.enter_async_context(configured(made, dsn, plan))
            subject = Subject(plan, database, open_calls, results, len(dsns))
            started_s = stopwatch_s()
            await issue(open_calls, CROWD, plan.limited)
            rate = plan.limited / (stopwatch_s() - started_s)
            results.facts.append(
                Fact(f"{plan.limited:,} users made, {kind} login", rate, "per second, a pool filled meanwhile")
            )
            found.append(Login(kind, subject))
        await pool_full(found[-1].subject)
        yield found


async def measure_logins(found: Sequence[Login]) -> None:
    """One round: each login after the other, with one client and with many; what was issued is revoked at once, timed as well."""
    for clients in _CLIENTS:
        for login in found:
            subject, live = login.subject, login.subject.plan.limited
            figure = await prepared_figure(subject, clients)
            subject.results.add(prepared_row(login.kind, live, clients), figure)
            revoked = await subject.calls.revoke_all(PREPARED, figure.done)
            if clients == _CLIENTS[-1]:
                subject.results.add(revoke_row(login.kind, live), revoked)
            await pool_full(subject)
