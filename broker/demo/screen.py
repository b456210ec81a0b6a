"""How the demo looks: who does what, and what came of it, one line each, at a pace that can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

_ACTOR_WIDTH = 13
_TICK_S = 0.1


class Screen:
    """Writes to a rich console; `pause_s` is how long a reader is left with each outcome."""

    def __init__(self, console: Console, *, pause_s: float = 0.7) -> None:
        self.console = console
        self._pause_s = pause_s
        unicode = console.encoding.startswith("utf")
        self._done, self._refused = ("✓", "✗") if unicode else ("+", "x")
        self._part = 0

    def title(self, text: str, subtitle: str) -> None:
        """The first two lines."""
        self._line(Text(text, style="bold"))
        self._line(Text(subtitle, style="dim"))

    def part(self, text: str) -> None:
        """Begins the next numbered part."""
        self._part += 1
        self.console.print()
        self.console.print(Rule(Text(f"{self._part}  {text}", style="bold blue"), align="left", style="blue"))

    def act(self, actor: str, deed: str) -> None:
        """`actor` does something: a request, a statement."""
        self._line(Text.assemble((f"{actor:<{_ACTOR_WIDTH}}", "bold cyan"), deed))

    async def done(self, outcome: str) -> None:
        """It worked, as it should."""
        await self._outcome(self._done, "green", outcome)

    async def refused(self, outcome: str) -> None:
        """It was refused, as it should be."""
        await self._outcome(self._refused, "red", outcome)

    async def breached(self, outcome: str) -> None:
        """It worked, as it does where nobody prevents it."""
        await self._outcome("!", "yellow", outcome)

    def note(self, text: str) -> None:
        """A word on why."""
        self._line(Text(" " * _ACTOR_WIDTH + text, style="dim italic"))

    async def rows(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A result, as a small table; numbers stand to the right. Lines are never folded or cut."""
        table = [columns, *([str(value) for value in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        right = [not isinstance(value, str) for value in (rows[0] if rows else columns)]
        for number, line in enumerate(table):
            cells = [
                text.rjust(width) if numeric else text.ljust(width)
                for text, width, numeric in zip(line, widths, right, strict=True)
            ]
            self._line(Text(" " * _ACTOR_WIDTH + "  ".join(cells).rstrip(), style="dim" if number == 0 else ""))
        await asyncio.sleep(self._pause_s)

    async def wait_for(self, event: asyncio.Event, *, seconds: float, text: str) -> bool:
        """Counts `seconds` down until `event` comes; whether it came within twice that time and five seconds more."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self.console.status("", spinner="dots") as status:
            while not event.is_set() and loop.time() - began < 2 * seconds + 5:
                left = max(0.0, seconds - (loop.time() - began))
                status.update(Text(f"{text}: {left:.1f} s left"))
                await asyncio.sleep(_TICK_S)
        return event.is_set()

    def plain(self, text: str = "") -> None:
        """A line to be copied: no colour, no indent, never folded."""
        self._line(Text(text))

    def failed(self, text: str) -> None:
        """The last line when it did not get to its end."""
        self.console.print()
        self._line(Text(text, style="bold red"))

    def end(self, text: str) -> None:
        """The last line."""
        self.console.print()
        self._line(Text(text, style="bold green"))

    async def _outcome(self, mark: str, style: str, outcome: str) -> None:
        self._line(Text.assemble(" " * _ACTOR_WIDTH, (f"{mark} ", f"bold {style}"), (outcome, style)))
        await asyncio.sleep(self._pause_s)

    def _line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)
