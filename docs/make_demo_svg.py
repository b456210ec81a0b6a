"""Makes `docs/demo.svg`, the README's picture, and prints the same run as text: a real `broker demo`, recorded by rich."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from broker.demo.play import play
from broker.demo.screen import Screen
from broker.log import LogSettings, configure

WIDTH = 132
PICTURE = Path(__file__).with_name("demo.svg")


def main() -> int:
    """Plays the demo once; answers its exit status."""
    configure(LogSettings(level="error", format="console"))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    status = asyncio.run(play(Screen(console), keep=False))
    text = console.export_text(clear=False)
    print(text)
    if status == 0:
        console.save_svg(str(PICTURE), title="broker demo", theme=MONOKAI)
    return status


if __name__ == "__main__":
    sys.exit(main())
