"""Where the command `broker` begins. It imports the rest itself, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import sys

_INTERRUPTED = 130
"""As a shell reports a process that SIGINT ended."""


def main() -> None:
    """Runs the command, and exits with its status."""
    try:
        from broker.cli.command import run  # noqa: PLC0415 - takes most of the time that a command needs to begin

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
