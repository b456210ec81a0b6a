"""A reserved port, with a server that comes and goes, among others who ask for ports."""

from __future__ import annotations

import contextlib
import socket

import pytest

from broker.testing import ports

OTHERS = 500


def test_reserved_port_is_nobody_elses() -> None:
    """Connections are refused while nobody listens; a server may listen again and again, and whoever asks for any port gets another."""
    with ports.reserve() as held, contextlib.ExitStack() as others:
        port = ports.number_of(held)
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
                pass
        taken = [others.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(OTHERS)]
        assert port not in taken
        with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
            stranger.bind(("127.0.0.1", port))
