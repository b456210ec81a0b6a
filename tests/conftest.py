"""What the whole test run shares."""

from __future__ import annotations

import os

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the servers that could not be had, and so the tests that did not run: `tests/run` says which."""
    missing = os.environ.get("BROKER_TESTS_NOT_RUN", "")
    if missing:
        terminalreporter.section("not run")
        terminalreporter.line(f"The tests that need these did not run: {missing}.")
