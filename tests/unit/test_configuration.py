"""The configuration reference and the example file are what the settings models say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from broker.config import Config, parse

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "etc" / "broker.toml"
_SETTING = re.compile(r"^#(\w+ = (?!\.\.\.).*)$", re.MULTILINE)


def test_generated_pages_are_current() -> None:
    """A changed setting changes the reference and the example file in the same commit."""
    done = subprocess.run(
        [sys.executable, "-P", "docs/make_configuration.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_example_changes_nothing() -> None:
    """The example file as it is installed is the default configuration."""
    assert parse(tomllib.loads(EXAMPLE.read_text())) == Config()


def test_example_shows_the_true_defaults() -> None:
    """Each setting of the example, taken out of its comment, is valid and is the default; none is left out."""
    content = tomllib.loads(_SETTING.sub(r"\1", EXAMPLE.read_text()))
    assert parse(content) == Config()
    assert content["server"]["address"] == Config().server.address
