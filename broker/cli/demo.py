"""`broker demo`: one lease lives and dies on a real database, or two attacks on it fail."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated, Literal

import typer


def demo(
    *,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack it instead: a login that hides, and code that waits for another owner.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up afterwards, with a token to try it yourself, until Ctrl-C.")
    ] = False,
) -> None:
    """Shows a database user made for one session, used, expired and removed, on a real PostgreSQL of its own.

    Exits with 1 when a step went otherwise than it should: with --attack, when an attack succeeded.
    """
    try:
        status = _play("attack" if attack else "story", keep=keep)
    except KeyboardInterrupt:
        # Ctrl-C before the demo's own handler stood: nothing had been started.
        status = 128 + signal.SIGINT
    raise typer.Exit(status)


def _play(tale: Literal["attack", "story"], *, keep: bool) -> int:
    from rich.console import Console  # noqa: PLC0415 - a command loads its room when it is called

    from broker.demo.attack import Attack  # noqa: PLC0415
    from broker.demo.play import Tale, play  # noqa: PLC0415
    from broker.demo.screen import Screen  # noqa: PLC0415
    from broker.demo.story import Story  # noqa: PLC0415
    from broker.log import LogSettings, configure  # noqa: PLC0415

    configure(LogSettings(level="error", format="console"))
    tales: dict[str, type[Tale]] = {"attack": Attack, "story": Story}
    return asyncio.run(play(tales[tale], Screen(Console()), keep=keep))
