"""Ports of this machine that stay whose they are, whether somebody listens there or not."""

from __future__ import annotations

import socket


def reserve() -> socket.socket:
    """A free port of 127.0.0.1, and nobody else's until the socket that is answered is closed.

    Nobody listens there: who connects is refused. Who binds the port by its number with SO_REUSEADDR, as servers do, may listen, and stop,
    and listen again; who asks for any free port, meanwhile or in between, gets another (socket(7)).
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def number_of(held: socket.socket) -> int:
    """The number of a port that was reserved."""
    return int(held.getsockname()[1])
