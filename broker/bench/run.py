"""One run of the bench: what is measured in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

from broker.bench import comparing, ending, expiring, issuing, limited, revoking, scale
from broker.bench.calls import Calls
from broker.bench.database import BenchDatabase, bench_database
from broker.bench.issuing import Subject
from broker.bench.load import measure
from broker.bench.plan import USUAL_ITERATIONS, Plan
from broker.bench.rows import Results, Step
from broker.bench.service import ON_DEMAND, Service, configured, service
from broker.secret import Secret

_WARM_S = 0.5
_WARM_CLIENTS = 8


class Progress(Protocol):
    """Who watches a run."""

    def begins(self, label: str) -> None:
        """A step begins."""
        ...

    def done(self) -> None:
        """The step is done."""
        ...


async def run(plan: Plan, dsn: Secret, progress: Progress, standby: Secret | None = None) -> Results:
    """Measures everything that the plan asks for. What was made in the database is removed, also after a failure.

    `standby` is the superuser's URL of a hot standby; required where the plan asks for one.
    """
    results = Results(notes=notes(plan))
    async with bench_database(dsn) as database:
        async with service() as made:
            progress.begins("start the broker")
            async with configured(made, dsn, plan) as open_calls:
                subject = Subject(plan, database, open_calls, results, standby=standby)
                await warm(open_calls, ON_DEMAND)
                await issuing.pool_full(subject)
                progress.done()
                await follow(steps(subject, made), progress)
        if plan.scale:
            await database.drop_all()
            await measure_sizes(plan, database, results, progress)
        if plan.limited:
            await database.drop_all()
            await measure_limited(plan, database, results, progress)
        if plan.reconciled:
            await database.drop_all()
            await measure_reconciling(plan, database, results, progress)
    return results


async def warm(open_calls: Calls, role: str) -> None:
    """Asks for leases for a moment, so that no measured one pays for opening connections; revokes them."""
    figure = (await measure(open_calls.address.creds_order(role, clients=_WARM_CLIENTS, seconds=_WARM_S))).figure
    await open_calls.revoke_all(role, figure.done)


def step_count(plan: Plan) -> int:
    """How many steps `run` will tell its watcher of."""
    issue = len(plan.clients) * 3
    revoke = 5 + (2 if plan.standby else 0) if plan.revoked else 0
    due = 4 if plan.due else 0
    beside = sum(1 + plan.rounds for wanted in (plan.scale, plan.limited, plan.reconciled) if wanted)
    return 1 + plan.rounds * (issue + revoke + due) + bool(plan.due) + bool(plan.standby) + beside


def steps(subject: Subject, made: Service) -> Iterator[Step]:
    """Everything that is measured with one running broker, round after round."""
    if subject.plan.due:
        yield Step("write roles that end together", partial(expiring.write_due_roles, subject))
    if subject.plan.standby:
        yield Step("write a connection with a standby", partial(ending.write_standby, subject))
    for number in range(1, subject.plan.rounds + 1):
        for step in _round(subject, made):
            yield Step(f"round {number} of {subject.plan.rounds}: {step.label}", step.run)


def _round(subject: Subject, made: Service) -> Iterator[Step]:
    plan = subject.plan
    for clients in plan.clients:
        yield Step(f"raw driver, {clients} clients", partial(issuing.measure_raw, subject, clients))
        yield Step(f"on demand, {clients} clients", partial(issuing.measure_on_demand, subject, clients))
        yield Step(f"prepared users, {clients} clients", partial(issuing.measure_prepared, subject, clients))
    if plan.revoked:
        yield Step(f"raw drops, {plan.revoked:,}", partial(revoking.measure_raw_drops, subject, plan.revoked))
        yield Step(f"revoke {plan.revoked:,}", partial(revoking.measure_revoke, subject, plan.revoked))
        yield from ending_steps(subject)
        yield Step("revoke users with tables", partial(revoking.measure_revoke_with_tables, subject, plan.tables))
    if plan.due:
        yield from due_steps(subject, made)


def ending_steps(subject: Subject) -> Iterator[Step]:
    """One round of revoking users that have sessions."""
    plan = subject.plan
    yield Step("revoke users with sessions", partial(ending.measure_batch, subject, plan.sessions))
    yield Step("revoke users with sessions one by one", partial(ending.measure_singles, subject, plan.singles))
    if plan.standby:
        yield Step("revoke users with sessions on a standby", partial(ending.measure_standby_batch, subject, plan.sessions))
        label = "revoke users with sessions on a standby one by one"
        yield Step(label, partial(ending.measure_standby_singles, subject, plan.singles))


def due_steps(subject: Subject, made: Service) -> Iterator[Step]:
    """One round of the mass expiry."""
    count = subject.plan.due
    yield Step(f"raw drops, {count:,}", partial(revoking.measure_raw_drops, subject, count))
    yield Step(f"{count:,} leases due", partial(expiring.measure_due, subject, made, count))
    for new in (expiring.FROM_POOL, expiring.ON_DEMAND_NEW):
        label = f"{count:,} leases due, {new.label} asked for meanwhile"
        yield Step(label, partial(expiring.measure_due_meanwhile, subject, made, count, new))


async def measure_sizes(plan: Plan, database: BenchDatabase, results: Results, progress: Progress) -> None:
    """Compares brokers with few and with many leases in their stores."""
    progress.begins(f"fill stores with up to {max(plan.scale):,} leases")
    async with scale.sized_brokers(plan, database, results) as brokers:
        progress.done()
        for number in range(1, plan.rounds + 1):
            await follow([Step(f"size, round {number}", partial(scale.measure_sized, brokers))], progress)
        scale.note_memory(brokers)


async def measure_limited(plan: Plan, database: BenchDatabase, results: Results, progress: Progress) -> None:
    """Compares a superuser's login with a plain CREATEROLE one, among many live users."""
    progress.begins(f"make {plan.limited:,} users with either login")
    async with limited.logins(plan, database, results) as found:
        progress.done()
        for number in range(1, plan.rounds + 1):
            await follow([Step(f"logins, round {number}", partial(limited.measure_logins, found))], progress)


async def measure_reconciling(plan: Plan, database: BenchDatabase, results: Results, progress: Progress) -> None:
    """Compares a database and a store that agree."""
    progress.begins(f"make {plan.reconciled:,} users and leases")
    async with comparing.crowded(plan, database, results) as crowd:
        progress.done()
        for number in range(1, plan.rounds + 1):
            await follow([Step(f"reconcile, round {number}", partial(comparing.measure_reconcile, crowd))], progress)
        comparing.note_reconcile(crowd)


async def follow(steps: Iterable[Step], progress: Progress) -> None:
    """Runs steps one after the other, and tells of each."""
    for step in steps:
        progress.begins(step.label)
        await step.run()
        progress.done()


def notes(plan: Plan) -> list[str]:
    """What a reader of the figures has to know."""
    told = [
        f"Medians of {plan.rounds} rounds; a ratio is the median of the rounds' own ratios.",
        f"Raw driver and on demand: SCRAM verifiers of {plan.scram_iterations:,} iterations.",
        "The raw driver that others are compared with has its verifier at hand.",
        "Prepared users, and users made only to be ended: 1 iteration, to make them fast; nothing else looks at it.",
        "Prepared users are taken out of a full pool, seven tenths of it at most: what fills it again is not timed.",
    ]
    if plan.scram_iterations != USUAL_ITERATIONS:
        told.append(f"Users usually have {USUAL_ITERATIONS:,} iterations: these rates are not those of an ordinary set-up.")
    if plan.revoked:
        told.append(
            "A session each: p50 and p99 are from the request to revoke to the end of the user's last session, as its client sees it."
        )
    if plan.due:
        told.append(
            "Leases due at once: the broker is paused (SIGSTOP) until all of them are due; the clock starts as it wakes."
        )
    return told
