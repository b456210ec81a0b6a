"""What the command `broker bench` does: measures under a progress bar, and shows."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from broker.bench.bar import watched
from broker.bench.database import embedded_pair, given_or_embedded
from broker.bench.plan import Plan
from broker.bench.rows import Results
from broker.bench.run import run, step_count
from broker.bench.table import Shown, as_json

_CONSOLE = Console()


def measured(plan: Plan, dsn: str) -> Results:
    """Runs the plan on the given database, or on an embedded one where `dsn` is empty."""
    if plan.standby:
        with embedded_pair(dsn) as (url, standby), watched(_CONSOLE, step_count(plan)) as bar:
            return until_ended(run(plan, url, bar, standby))
    with given_or_embedded(dsn) as url, watched(_CONSOLE, step_count(plan)) as bar:
        return until_ended(run(plan, url, bar))


def until_ended(measuring: Coroutine[Any, Any, Results]) -> Results:
    """Runs to the end; SIGTERM ends it early, as Ctrl-C does, and what was started is stopped and removed."""

    async def guarded() -> Results:
        task = asyncio.ensure_future(measuring)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(guarded())


def show(results: Results, file: Path | None) -> bool:
    """Prints the table, writes all figures to a file where one is given; False when a row failed."""
    _CONSOLE.print(Shown(results))
    if file is not None:
        file.write_bytes(orjson.dumps(as_json(results), option=orjson.OPT_INDENT_2))
    return not results.failed()
