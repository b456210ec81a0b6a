"""How the demo looks."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from broker.demo.screen import Screen


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def screen(written: io.StringIO) -> Screen:
    return Screen(Console(file=written, width=40), pause_s=0)


def lines(written: io.StringIO) -> list[str]:
    return [line.rstrip() for line in written.getvalue().splitlines()]


async def test_rows_are_aligned(screen: Screen, written: io.StringIO) -> None:
    """Texts stand to the left, numbers to the right, under their columns, indented as outcomes are."""
    await screen.rows(["id", "name"], [(1, "lamp"), (10, "chair")])
    assert lines(written) == [" " * 13 + "id  name", " " * 13 + " 1  lamp", " " * 13 + "10  chair"]


async def test_no_rows_leave_the_columns(screen: Screen, written: io.StringIO) -> None:
    """A result without rows still says what was looked for."""
    await screen.rows(["id", "name"], [])
    assert lines(written) == [" " * 13 + "id  name"]


async def test_lines_are_never_folded(screen: Screen, written: io.StringIO) -> None:
    """A user name can be copied whole, however narrow the terminal is."""
    screen.act("superuser", "x" * 60)
    await screen.done("y" * 60)
    await screen.rows(["user"], [("z" * 60,)])
    assert [len(line.strip().split()[-1]) for line in lines(written)] == [60, 60, 4, 60]


async def test_parts_are_numbered(screen: Screen, written: io.StringIO) -> None:
    """Each part says which one it is."""
    screen.part("first")
    screen.part("second")
    assert [line[:9] for line in lines(written) if line] == ["1  first ", "2  second"]


async def test_outcomes_can_be_told_apart(screen: Screen, written: io.StringIO) -> None:
    """What worked, what was refused and what should not have worked have marks of their own, without colour too."""
    await screen.done("read")
    await screen.refused("read")
    await screen.breached("read")
    assert len({line.split()[0] for line in lines(written)}) == 3


async def test_text_is_no_markup(screen: Screen, written: io.StringIO) -> None:
    """What a database says is shown as it is, square brackets included."""
    await screen.refused("[bold]no[/bold]")
    assert "[bold]no[/bold]" in written.getvalue()


async def test_waiting_ends_with_the_event(screen: Screen) -> None:
    """What is waited for ends the wait, whatever was expected of the time."""
    event = asyncio.Event()
    event.set()
    assert await screen.wait_for(event, seconds=3_600, text="waiting")


async def test_waiting_gives_up(screen: Screen) -> None:
    """What does not come within its time is said not to have come."""
    assert not await screen.wait_for(asyncio.Event(), seconds=-2.5, text="waiting")
