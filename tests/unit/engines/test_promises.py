"""The promises of the protocol, checked of the engine in memory and of the guard around it."""

from __future__ import annotations

from broker.engines.testing import EnginePromises, ExpiryPromises, PreparedPromises


class TestEngine(EnginePromises):
    """Issue, extension and revocation."""


class TestPreparedUsers(PreparedPromises):
    """Users made without login."""


class TestServerExpiry(ExpiryPromises):
    """Logins that the server ends."""
