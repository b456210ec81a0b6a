"""`broker demo` shows what it promises and leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from broker.demo import hiding
from broker.demo.attack import Attack
from broker.demo.play import play
from broker.demo.screen import Screen
from broker_postgresql import handover, hidden

BROKER = Path(sys.executable).with_name("broker")
INTERRUPTED = 128 + signal.SIGINT
LIMIT_S = 240
INTERRUPTIONS = 5
STORY_LINES = 70
"""Fewer than either story has; interruptions are spread over so many. How long a line takes is the machine's affair."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demo keeps what it needs. Not below `tmp_path`: as root, the database runs as somebody who can't go there."""
    directory = Path(tempfile.mkdtemp(prefix="demo-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def start_demo(temporary: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(str(BROKER), "demo", *arguments),
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def ended(demo: asyncio.subprocess.Process) -> tuple[str, str]:
    """The rest of its output, and its errors."""
    output, errors = await asyncio.wait_for(demo.communicate(), LIMIT_S)
    return output.decode(), errors.decode()


def interrupt(demo: asyncio.subprocess.Process) -> None:
    """Ctrl-C at a terminal: every process of the group gets the signal."""
    with suppress(ProcessLookupError):
        os.killpg(demo.pid, signal.SIGINT)


def assert_nothing_left(temporary: Path) -> None:
    """No file, and no process that was told about one."""
    assert list(temporary.iterdir()) == []
    running = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if str(temporary) in read_or_nothing(path)]
    assert running == []


def read_or_nothing(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


async def test_demo_tells_the_whole_story(temporary: Path) -> None:
    """Two users are made, used, refused what they may not, ended and seen to be gone; the log is whole; nothing is left."""
    demo = await start_demo(temporary)
    output, errors = await ended(demo)
    assert (demo.returncode, errors) == (0, ""), output + errors
    expected = [
        "PostgreSQL 18",
        "a token for the application",
        "logged in",
        "chair  119.00",
        "42501  permission denied for table products",
        "6 s from now",
        "the session ended",
        "connection is closed",
        "28P01  password authentication failed",
        "0 rows: the user does not exist",
        "revoked, and seen to be gone",
        "28P01  password authentication failed",
        "0 rows: the user does not exist",
        "none altered, none missing",
        "no role is left behind",
        "all removed",
    ]
    place = 0
    for words in expected:
        place = output.find(words, place)
        assert place >= 0, f"{words!r} is missing, or too early, in:\n{output}"
    users = set(re.findall(r"✓ user (\S+),", output))
    assert len(users) == 2
    audited = output.partition("the audit log")[2]
    assert all(audited.count(user) >= 2 for user in users), "the log names each user when it is handed out and when it ends"
    assert_nothing_left(temporary)


async def test_attacks_fail_and_leave_nothing(temporary: Path) -> None:
    """Both attacks succeed against plain statements and fail against the broker, whose own and the database's words are shown."""
    demo = await start_demo(temporary, "--attack")
    output, errors = await ended(demo)
    assert (demo.returncode, errors) == (0, ""), output + errors
    expected = [
        "pg_stat_activity shows 0 sessions of the user",
        "0 sessions are open, and the role does not exist",
        "! 3 rows, read as shop_readers by a user that is no more",
        "✓ 3 rows, read as shop_readers: the lease lives",
        "pg_stat_activity shows 0 sessions of the user",
        "✓ 0 rows, and 0 rows",
        "wakes: SELECT",
        "✗ ",
        "! 2 rows: everybody's salaries",
        "✗ 400",
        "the user could not act as shop_owner itself, and shop_owner has rights of its own",
        "is not permitted to log in",
        "✗ 42501  permission denied for table salaries",
        'CREATE ROLE "left_over_',
        "✗ 42501  permission denied for table salaries",
        "has looked at what was kept: DROP OWNED BY left_over_",
        "✗ 42883",
        "its table notes belongs to shop_attic now",
        "no role is left behind",
        "all removed",
    ]
    place = 0
    for words in expected:
        place = output.find(words, place)
        assert place >= 0, f"{words!r} is missing, or too early, in:\n{output}"
        place += len(words)
    assert_nothing_left(temporary)


async def attacked() -> tuple[int, str]:
    """How the attacks end against the broker as it is, and what they show."""
    output = io.StringIO()
    return await play(Attack, Screen(Console(file=output, width=200), pause_s=0), keep=False), output.getvalue()


async def test_hidden_login_that_reads_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker does not look for logins that hide, the attack succeeds, and the demo says so and ends with 1."""

    async def look_away(*_: object) -> hidden.Found:
        return hidden.Found()

    monkeypatch.setattr(hidden.Hidden, "end", look_away)
    monkeypatch.setattr(hiding, "_LONG_S", 6)
    status, output = await attacked()
    assert (status, "the hidden login read after its lease was revoked" in output) == (1, True), output


async def test_code_that_is_handed_over_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker hands code to whoever is named, the demo ends with 1."""

    async def trust(*_: object) -> str:
        return "shop_owner"

    monkeypatch.setattr(handover, "prepare", trust)
    status, output = await attacked()
    assert (status, "the broker did what it should have refused" in output) == (1, True), output


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("arguments", [[], ["--attack"]], ids=["story", "attack"])
async def test_interrupted_demo_leaves_nothing(temporary: Path, arguments: list[str]) -> None:
    """Ctrl-C at any moment ends it with the status of an interrupted program, without a traceback, and everything is removed."""

    async def interrupted(lines: int) -> None:
        demo = await start_demo(temporary, *arguments)
        assert demo.stdout is not None
        told = b"".join([await demo.stdout.readline() for _ in range(lines)])
        await asyncio.sleep(random.random() / 2)
        interrupt(demo)
        output, errors = await ended(demo)
        assert (demo.returncode, errors) == (INTERRUPTED, ""), f"after {lines} lines:\n{told.decode()}{output}{errors}"

    # Spread over the story; where within its part of it, chance decides anew each time.
    moments = [
        random.randint(part, part + STORY_LINES // INTERRUPTIONS)
        for part in range(1, STORY_LINES, STORY_LINES // INTERRUPTIONS)
    ]
    await asyncio.gather(*map(interrupted, [1, 1, *moments]))
    assert_nothing_left(temporary)


async def test_kept_demo_answers_until_interrupted(temporary: Path) -> None:
    """With --keep it prints a token that works for more leases; Ctrl-C then is the regular end, and everything is removed."""
    demo = await start_demo(temporary, "--keep")
    assert demo.stdout is not None
    text = ""
    while "tail -f" not in text:
        line = await asyncio.wait_for(demo.stdout.readline(), LIMIT_S)
        assert line, f"it ended early:\n{text}"
        text += line.decode()
    found = re.search(r"VAULT_ADDR=(\S+) VAULT_TOKEN=(\S+)", text)
    assert found is not None
    shown = [line for line in text.splitlines() if "curl" in line]
    headers = {Path(path) for line in shown for path in re.findall(r"-H @(\S+)", line)}
    assert len(shown) > len(headers) == 1
    [header] = headers
    assert (header.read_text(), stat.S_IMODE(header.stat().st_mode)) == (f"X-Vault-Token: {found[2]}\n", 0o600)
    request = urllib.request.Request(f"{found[1]}/v1/database/creds/reader", headers={"X-Vault-Token": found[2]})
    reply = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(request).read()))
    assert reply["lease_duration"] == 600
    interrupt(demo)
    output, errors = await ended(demo)
    assert (demo.returncode, errors) == (0, ""), output + errors
    assert "no role is left behind" in output
    assert_nothing_left(temporary)
