"""`broker demo`: one lease lives and dies on a real database."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from broker.demo.play import INTERRUPTED, play
from broker.demo.screen import Screen
from broker.log import LogSettings, configure


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up afterwards, with a token to try it yourself, until Ctrl-C.")
    ] = False,
) -> None:
    """Shows a database user made for one session, used, expired and removed, on a real PostgreSQL of its own."""
    configure(LogSettings(level="error", format="console"))
    try:
        status = asyncio.run(play(Screen(Console()), keep=keep))
    except KeyboardInterrupt:
        # Ctrl-C before the first signal handler stood: nothing had been started.
        status = INTERRUPTED
    raise typer.Exit(status)
