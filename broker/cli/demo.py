"""`broker demo`: one lease lives and dies on a real database."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up afterwards, with a token to try it yourself, until Ctrl-C.")
    ] = False,
) -> None:
    """Shows a database user made for one session, used, expired and removed, on a real PostgreSQL of its own."""
    try:
        status = _play(keep=keep)
    except KeyboardInterrupt:
        # Ctrl-C before the demo's own handler stood: nothing had been started.
        status = 128 + signal.SIGINT
    raise typer.Exit(status)


def _play(*, keep: bool) -> int:
    from rich.console import Console  # noqa: PLC0415 - a command loads its room when it is called

    from broker.demo.play import play  # noqa: PLC0415
    from broker.demo.screen import Screen  # noqa: PLC0415
    from broker.log import LogSettings, configure  # noqa: PLC0415

    configure(LogSettings(level="error", format="console"))
    return asyncio.run(play(Screen(Console()), keep=keep))
