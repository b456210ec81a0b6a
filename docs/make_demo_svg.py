"""Makes the README's picture of the demo, `docs/demo.svg`, and its text there, from one real run recorded by rich."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from broker.demo.play import play
from broker.demo.screen import Screen
from broker.demo.story import Story
from broker.log import LogSettings, configure

WIDTH = 132
PICTURE = Path(__file__).with_name("demo.svg")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- demo -->\n", "<!-- end of demo -->\n"


def main() -> int:
    """Plays the demo once; answers its exit status."""
    configure(LogSettings(level="error", format="console"))
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    status = asyncio.run(play(Story, Screen(console), keep=False))
    text = "\n".join(line.rstrip() for line in console.export_text(clear=False).strip().splitlines())
    print(text)
    if status == 0:
        console.save_svg(str(PICTURE), title="broker demo", theme=MONOKAI)
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(f"{before}{BEGIN}\n```text\n{text}\n```\n\n{END}{after}", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
