"""The quick version of the harness that kills the broker under load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")


@pytest.mark.timeout(1_200)
def test_promise_9_any_process_may_die() -> None:
    """After each SIGKILL the store knows every user, and in the end nothing is left and no audit line is missing."""
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--rounds", "12"], capture_output=True, text=True, timeout=1_180, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "12 kills" in done.stdout
    assert " 0 problems" in done.stdout
