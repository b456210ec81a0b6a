"""What the project holds itself to, and whether a run met it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from broker.bench import limited
from broker.bench.expiring import FROM_POOL, ON_DEMAND_NEW, due_row, meanwhile_row
from broker.bench.issuing import on_demand_row, prepared_row, raw_hashing_row, raw_row
from broker.bench.plan import Plan
from broker.bench.revoking import raw_drop_row, revoke_row
from broker.bench.rows import Results, Row
from broker.bench.scale import sized_row


@dataclass(frozen=True, slots=True)
class Target:
    """A number that was asked for beside what was measured; None where it was not, or where a row failed."""

    text: str
    bound: float
    measured: float | None
    most: bool = False
    """Whether `bound` is the most that is allowed, and not the least."""

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.measured is None:
            return "not measured"
        return "met" if (self.measured <= self.bound if self.most else self.measured >= self.bound) else "MISSED"


def peer_on_demand_row(clients: int) -> Row:
    """OpenBao's leases."""
    return Row("OpenBao: on demand", clients, raw_row(clients))


def peer_revoke_row(count: int) -> Row:
    """OpenBao's revoke-prefix."""
    return Row(f"OpenBao: revoke {count:,} at once, DROP ROLE alone", 0, raw_drop_row(count))


def judged(plan: Plan, results: Results) -> Table:
    """The targets as a table."""
    table = Table(title="targets", title_justify="left")
    table.add_column("ratio, in one run")
    for heading in ("asked", "measured", ""):
        table.add_column(heading, justify="right")
    for target in (*_issuing(results), *_ending(plan, results), *_size(plan, results), *_login(plan, results)):
        measured = "" if target.measured is None else f"{target.measured:.2f}"
        bound = f"{'at most' if target.most else 'at least'} {target.bound:g}"
        table.add_row(target.text, bound, measured, target.verdict, style="" if target.verdict == "met" else "bold red")
    return table


def _issuing(results: Results) -> Iterator[Target]:
    on_demand, prepared = on_demand_row(8), prepared_row(8)
    peer = peer_on_demand_row(8)
    yield Target("on demand, 8 clients: rate to raw", 0.85, _rate(results, on_demand, raw_row(8)))
    yield Target("the same to raw that makes verifiers too", 0.85, _rate(results, on_demand, raw_hashing_row(8)))
    yield Target("on demand, 8 clients: rate to OpenBao", 1.7, _rate(results, on_demand, peer))
    yield Target("on demand, 1 client: p50 to raw", 1.2, _p50(results, on_demand_row(1), raw_row(1)), most=True)
    yield Target("prepared, 8 clients: rate to raw on demand", 6, _rate(results, prepared, raw_row(8)))
    yield Target("prepared, 8 clients: rate to OpenBao", 12, _rate(results, prepared, peer))
    yield Target("prepared, 32 clients: rate to OpenBao", 25, _rate(results, prepared_row(32), peer_on_demand_row(32)))
    yield Target("prepared, 1 client: p50 to raw on demand", 0.2, _p50(results, prepared_row(1), raw_row(1)), most=True)


def _ending(plan: Plan, results: Results) -> Iterator[Target]:
    count = plan.revoked
    if count:
        revoked, peer = revoke_row(count, "plain", count), peer_revoke_row(count)
        yield Target(f"revoke {count:,} at once: rate to OpenBao", 12, _rate(results, revoked, peer))
    if not plan.due:
        return
    slower = _rate(results, due_row(plan.due), raw_drop_row(plan.due))
    text = f"{plan.due:,} leases due at once: time to that of raw drops"
    yield Target(text, 3, None if slower is None else 1 / slower, most=True)
    for new in (FROM_POOL, ON_DEMAND_NEW):
        row = meanwhile_row(plan.due, new)
        yield Target(f"{new.label} meanwhile: rate to alone", 0.75, _rate(results, row, row.base))


def _size(plan: Plan, results: Results) -> Iterator[Target]:
    if not plan.scale:
        return
    most = max(plan.scale)
    for clients in (1, 32):
        row = sized_row(most, clients, min(plan.scale))
        yield Target(f"{most:,} leases, {clients} clients: p50 to few leases", 1.15, _p50(results, row, row.base), most=True)
        yield Target(f"{most:,} leases, {clients} clients: rate to few leases", 1 / 1.15, _rate(results, row, row.base))
    yield Target(f"{most:,} leases: seconds until ready", 2, _fact(results, f"start with {most:,} leases"), most=True)
    yield Target(f"{most:,} leases: MB resident", 200, _fact(results, f"memory with {most:,} leases"), most=True)
    ours, theirs = _fact(results, "memory with 100,000 leases"), _fact(results, "OpenBao's memory with 100,000 leases")
    share = ours / theirs if ours and theirs else None
    yield Target("100,000 leases: memory to OpenBao's", 0.2, share, most=True)


def _login(plan: Plan, results: Results) -> Iterator[Target]:
    if not plan.limited:
        return
    rows = {
        "prepared, 32 clients": limited.prepared_row(limited.LIMITED, plan.limited, 32),
        "revoke at once": limited.revoke_row(limited.LIMITED, plan.limited),
    }
    for what, row in rows.items():
        yield Target(f"plain login, {plan.limited:,} live: {what}: rate to superuser's", 0.5, _rate(results, row, row.base))


def _rate(results: Results, row: Row, base: Row | None) -> float | None:
    return results.rate_to(row, base) if row in results.figures else None


def _p50(results: Results, row: Row, base: Row | None) -> float | None:
    return results.p50_to(row, base) if row in results.figures else None


def _fact(results: Results, label: str) -> float | None:
    """The last fact of that label: after the work, where there was any."""
    return next((fact.value for fact in reversed(results.facts) if fact.label == label), None)
