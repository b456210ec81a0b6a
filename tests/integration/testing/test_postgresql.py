"""The launcher of throw-away servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from broker.clock import stopwatch_s
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer, ServerFailed

LEFT_BEHIND = """
import os, sys
from pathlib import Path
from broker.testing.postgresql import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.directory, flush=True)
print(server.port, flush=True)
sys.stdin.read()
"""


async def answer(server: PostgresServer, query: str, password: Secret | None = None) -> Any:
    """What the superuser is answered."""
    wire = await asyncpg.connect(server.dsn(server.superuser, password or server.superuser_password).reveal())
    try:
        return await wire.fetchval(query)
    finally:
        await wire.close()


async def test_server_is_like_a_real_one(binaries: Path) -> None:
    """It wants a SCRAM password, flushes what it writes, and runs as somebody without rights; nothing of it stays."""
    async with PostgresServer(binaries) as server:
        assert await answer(server, "SHOW fsync") == "on"
        assert (await answer(server, "SELECT rolpassword FROM pg_authid WHERE rolsuper")).startswith("SCRAM-SHA-256$")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await answer(server, "SELECT 1", Secret("wrong"))
        directory = server.directory
        assert (directory / "data").stat().st_uid != 0
        assert not (directory / "password").exists()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()
    assert not server.running


async def test_data_survive_stop_and_crash(binaries: Path) -> None:
    """What was committed is there again after a restart and after a crash, on the same port."""
    async with PostgresServer(binaries) as server:
        await answer(server, "CREATE TABLE kept AS SELECT 7 AS a")
        port = server.port
        for end in (server.stop, server.kill):
            await asyncio.to_thread(end)
            assert not server.running
            with pytest.raises(OSError):  # noqa: PT011 - the system's own words differ
                await answer(server, "SELECT 1")
            await asyncio.to_thread(server.start)
            assert await answer(server, "SELECT a FROM kept") == 7
        await asyncio.to_thread(server.restart)
        assert server.port == port


def test_settings_are_taken(binaries: Path) -> None:
    """Settings are the server's; one that it does not take is told, with its own words, and leaves nothing."""
    with PostgresServer(binaries, extra_config={"work_mem": "3MB"}) as server:
        assert asyncio.run(answer(server, "SHOW work_mem")) == "3MB"
    broken = PostgresServer(binaries, extra_config={"work_mem": "much"})
    with pytest.raises(ServerFailed, match="work_mem"), broken:
        pass
    with pytest.raises(ServerFailed):
        _ = broken.directory


def test_removal_may_be_repeated(binaries: Path) -> None:
    """Removing twice, or what was never started, does nothing."""
    server = PostgresServer(binaries)
    server.remove()
    server.start()
    server.remove()
    server.remove()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_user(binaries: Path, how: signal.Signals) -> None:
    """When the process that started it is killed, the server ends and its directory goes."""
    command = [sys.executable, "-c", LEFT_BEHIND, str(binaries)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        directory = Path(user.stdout.readline().strip())
        assert directory.is_dir()
        os.kill(user.pid, how)
        user.wait()
    deadline = stopwatch_s() + 60
    while directory.exists() and stopwatch_s() < deadline:
        os.sched_yield()
    assert not directory.exists()


def test_unreachable_programs_are_copied(binaries: Path, tmp_path: Path) -> None:
    """Programs that lie where only root may look are run from a copy, and their own place is left as it is."""
    if os.geteuid() != 0:
        assert PostgresServer(binaries)._account == {}
        return
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    package = binaries.parent.parent
    wanted = [package / binaries.parent.name, package.with_name(f"{package.name}.libs")]
    for path in filter(Path.exists, wanted):
        shutil.copytree(path, hidden / path.relative_to(package.parent), symlinks=True)
    with PostgresServer(hidden / binaries.relative_to(package.parent)) as server:
        assert asyncio.run(answer(server, "SELECT 1")) == 1
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
