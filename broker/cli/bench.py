"""`broker bench`: how fast it is, beside the raw driver in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.bench.plan import Plan

FAILED = 1
"""Exit code when a row had errors."""
_USUAL = Plan()
_SMALL_STORE = 1_000


def bench(
    *,
    dsn: Annotated[
        str,
        typer.Option(
            envvar="BROKER_BENCH_DSN", help="A superuser's URL, postgresql://...; without it an embedded server is started."
        ),
    ] = "",
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients at the same time; may be given several times.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one measurement of a rate.")] = _USUAL.seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = _USUAL.rounds,
    prepared: Annotated[int, typer.Option(min=1, max=10_000, help="Users in the pool of prepared ones.")] = _USUAL.prepared,
    scram_iterations: Annotated[
        int, typer.Option(min=1, help="Iterations of the verifiers that are measured.")
    ] = _USUAL.scram_iterations,
    revoked: Annotated[int, typer.Option(min=0, help="Leases revoked at once; 0: none.")] = _USUAL.revoked,
    due: Annotated[int, typer.Option(min=0, help="Leases that end in the same second; 0: none.")] = _USUAL.due,
    scale: Annotated[int, typer.Option(min=0, help="Also compare a store of this many leases with one of 1,000; 0: no.")] = 0,
    limited: Annotated[
        int,
        typer.Option(min=0, help="Also compare a superuser's login with a plain CREATEROLE one among this many users; 0: no."),
    ] = 0,
    reconcile: Annotated[
        int, typer.Option(min=0, help="Also compare this many users of a database with as many leases; 0: no.")
    ] = 0,
    standby: Annotated[
        bool, typer.Option("--standby", help="Also revoke users with sessions on a hot standby; the embedded server only.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file as JSON.")] = None,
) -> None:
    """Measures the broker beside the raw driver on one PostgreSQL, in one run."""
    plan = Plan(
        clients=tuple(clients or _USUAL.clients),
        seconds=seconds,
        rounds=rounds,
        prepared=prepared,
        scram_iterations=scram_iterations,
        revoked=revoked,
        sessions=min(_USUAL.sessions, revoked),
        singles=min(_USUAL.singles, revoked),
        tables=min(_USUAL.tables, revoked),
        due=due,
        scale=tuple(sorted({min(_SMALL_STORE, scale // 2), scale})) if scale else (),
        limited=limited,
        reconciled=reconcile,
        standby=standby and revoked > 0,
    )
    from broker.bench.command import measured, show  # noqa: PLC0415 - a command loads its room when it is called

    if not show(measured(plan, dsn), json):
        raise typer.Exit(FAILED)
