"""Where the command `broker` begins. It imports the rest itself, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130
"""As a shell reports a process that SIGINT ended."""
_LAST_STANDARD_FILE = 2


def main() -> None:
    """Runs the command, and exits with its status."""
    hold_standard_files()
    try:
        from broker.cli.command import run  # noqa: PLC0415 - takes most of the time that a command needs to begin

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def hold_standard_files() -> None:
    """Opens what whoever started the command has closed of its three standard files, to read nothing and to refuse to be written.

    Otherwise the next file that is opened gets their number: what is meant for the standard output would be written there, and
    libuv (under uvloop) aborts the process when that file is closed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= _LAST_STANDARD_FILE:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - its second parameter has no name
    os.close(descriptor)
    # Python has None for what was closed. The log would then go to the standard output, between the lines of the audit log.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
