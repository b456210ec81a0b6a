"""The broker beside OpenBao and the raw driver: the same work on the same PostgreSQL in one run, and which targets are met.

    python tests/bench/compare.py --help

Nothing here is asserted by a test: the figures belong to the machine that they were measured on, only ratios travel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import orjson
from peer import CROWD, EMPTY, ROLE, Peer, openbao
from rich.console import Console
from targets import judged, peer_on_demand_row, peer_revoke_row

from broker.bench import expiring, issuing, revoking, run
from broker.bench.bar import Bar, watched
from broker.bench.command import until_ended
from broker.bench.database import bench_database, given_or_embedded
from broker.bench.issuing import Subject
from broker.bench.load import measure
from broker.bench.plan import Plan
from broker.bench.rows import Fact, Results, Step
from broker.bench.service import ON_DEMAND, Service, configured, service
from broker.bench.table import Shown, as_json
from broker.secret import Secret

_SIZES = (1_000, 100_000, 1_000_000)
_LIMITED = 20_000
_PEER_CLIENTS = 8


async def compare(plan: Plan, dsn: Secret, peer_leases: int, bar: Bar) -> Results:
    """Everything that the plan asks for, round after round, broker and peer in turn."""
    results = Results(notes=run.notes(plan))
    async with bench_database(dsn) as base:
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(service())
            open_calls = await stack.enter_async_context(configured(made, dsn, plan))
            peer = await stack.enter_async_context(openbao(dsn))
            results.notes.append(
                f"OpenBao {peer.version}: raft storage, file audit, 8 connections, SCRAM, `DROP ROLE` to revoke."
            )
            subject = Subject(plan, base, open_calls, results)
            await run.warm(open_calls, ON_DEMAND)
            await run.warm(peer.calls, ROLE)
            await issuing.pool_full(subject)
            await run.follow(steps(subject, made, peer, peer_leases), bar)
        if plan.scale:
            await base.drop_all()
            await run.measure_sizes(plan, base, results, bar)
        if plan.limited:
            await base.drop_all()
            await run.measure_limited(plan, base, results, bar)
    return results


def steps(subject: Subject, made: Service, peer: Peer, peer_leases: int) -> Iterator[Step]:
    """All rounds; the peer's memory last, for its leases stay."""
    rounds = subject.plan.rounds
    if subject.plan.due:
        yield Step("write roles that end together", partial(expiring.write_due_roles, subject))
    for number in range(1, rounds + 1):
        for step in one_round(subject, made, peer):
            yield Step(f"round {number} of {rounds}: {step.label}", step.run)
    if peer_leases:
        yield Step(f"OpenBao's memory with {peer_leases:,} leases", partial(measure_peer_memory, subject, peer, peer_leases))


def one_round(subject: Subject, made: Service, peer: Peer) -> Iterator[Step]:
    """Each pair that is compared, one right after the other."""
    plan = subject.plan
    for clients in plan.clients:
        yield Step(f"raw driver, {clients} clients", partial(issuing.measure_raw, subject, clients))
        yield Step(f"on demand, {clients} clients", partial(issuing.measure_on_demand, subject, clients))
        yield Step(f"OpenBao, {clients} clients", partial(measure_peer, subject, peer, clients))
        yield Step(f"prepared users, {clients} clients", partial(issuing.measure_prepared, subject, clients))
    if plan.revoked:
        yield Step(f"raw drops, {plan.revoked:,}", partial(revoking.measure_raw_drops, subject, plan.revoked))
        yield Step(f"revoke {plan.revoked:,}", partial(revoking.measure_revoke, subject, plan.revoked))
        yield Step(f"OpenBao, revoke {plan.revoked:,}", partial(measure_peer_revoke, subject, peer, plan.revoked))
        yield from run.ending_steps(subject)
        yield Step("revoke users with tables", partial(revoking.measure_revoke_with_tables, subject, plan.tables))
    if plan.due:
        yield from run.due_steps(subject, made)


async def measure_peer(subject: Subject, peer: Peer, clients: int) -> None:
    """The peer's leases, each with its user made on demand; revoked afterwards, untimed."""
    order = peer.calls.address.creds_order(ROLE, clients=clients, seconds=subject.plan.seconds)
    figure = (await measure(order)).figure
    subject.results.add(peer_on_demand_row(clients), figure)
    await peer.calls.revoke_all(ROLE, figure.done)


async def measure_peer_revoke(subject: Subject, peer: Peer, count: int) -> None:
    """The peer's revoke-prefix with plain `DROP ROLE` statements."""
    await revoking.issue(peer.calls, CROWD, count)
    subject.results.add(peer_revoke_row(count), await peer.calls.revoke_all(CROWD, count))


async def measure_peer_memory(subject: Subject, peer: Peer, count: int) -> None:
    """What `count` leases add to the peer's resident memory; told for 100,000, extrapolated unless it really held them."""
    before_mb = peer.resident_mb()
    await measure(peer.calls.address.creds_order(EMPTY, clients=_PEER_CLIENTS, requests=count))
    after_mb = peer.resident_mb()
    subject.results.facts.append(Fact(f"OpenBao's memory with {count:,} leases", after_mb, f"MB, {before_mb:,.0f} before"))
    told = "measured" if count == _SIZES[1] else f"extrapolated from {count:,}"
    for_all_mb = before_mb + (after_mb - before_mb) * _SIZES[1] / count
    subject.results.facts.append(Fact("OpenBao's memory with 100,000 leases", for_all_mb, f"MB, {told}"))


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--dsn", default="", help="a superuser's URL; without it an embedded server is started")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--prepared", type=int, default=usual.prepared)
    parser.add_argument("--revoked", type=int, default=usual.revoked)
    parser.add_argument("--due", type=int, default=usual.due)
    parser.add_argument(
        "--peer-leases", type=int, default=20_000, help="leases that OpenBao holds for the memory row; 0: no row"
    )
    parser.add_argument("--no-scale", action="store_true", help="leave out the stores with many leases")
    parser.add_argument("--limited", type=int, default=_LIMITED, help="users among whom logins are compared; 0: no rows")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table and the targets."""
    asked = arguments()
    plan = Plan(
        rounds=asked.rounds,
        seconds=asked.seconds,
        prepared=asked.prepared,
        revoked=asked.revoked,
        sessions=min(Plan().sessions, asked.revoked),
        singles=min(Plan().singles, asked.revoked),
        tables=min(Plan().tables, asked.revoked),
        due=asked.due,
        scale=() if asked.no_scale else _SIZES,
        limited=asked.limited,
    )
    console = Console()
    with given_or_embedded(asked.dsn) as dsn, watched(console, run.step_count(plan) + plan.rounds * 4 + 1) as bar:
        results = until_ended(compare(plan, dsn, asked.peer_leases, bar))
    console.print(Shown(results), judged(plan, results))
    if asked.json:
        asked.json.write_bytes(orjson.dumps(as_json(results), option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
