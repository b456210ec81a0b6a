"""Before many leases end at once, the database's own clock is asked whether it is really that late.

A clock that jumped would otherwise end every lease at once, silently. Where clock and database disagree by over a minute, expiry on
that connection waits and says so; where the database does not answer within a minute, leases end: the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from broker.audit.entry import NOBODY
from broker.catalog.connections import Connection
from broker.engines.protocol import Engine
from broker.errors import EngineError
from broker.leases import records
from broker.leases.parts import Parts
from broker.model import ConnectionNumber

_TOLERANCE_MS = 60_000
_SILENCE_MS = 60_000
_ASK_AGAIN_MS = 5_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Witness:
    """Remembers since when each connection's database has been silent."""

    parts: Parts
    silent_since_ms: dict[ConnectionNumber, int]
    in_doubt: set[ConnectionNumber] = field(default_factory=set)
    """Connections whose expiry was told to wait last: there even a single lease waits for a better answer."""

    async def wait_ms(self, connection: Connection, engine: Engine) -> int:
        """How long a mass expiry on this connection must wait before asking again; 0: go on."""
        wait_ms = await self._wait_ms(connection, engine)
        if wait_ms:
            self.in_doubt.add(connection.number)
        else:
            self.in_doubt.discard(connection.number)
        return wait_ms

    async def _wait_ms(self, connection: Connection, engine: Engine) -> int:
        now = self.parts.store.now_ms()
        try:
            health = await engine.health()
        except EngineError:
            since = self.silent_since_ms.setdefault(connection.number, now)
            return 0 if now - since >= _SILENCE_MS else _ASK_AGAIN_MS
        self.silent_since_ms.pop(connection.number, None)
        ahead_ms = now - health.server_time_ms
        if abs(ahead_ms) <= _TOLERANCE_MS:
            return 0
        log.error("clocks disagree, mass expiry waits", connection=connection.name, broker_ahead_s=ahead_ms / 1_000)
        request = records.new_request("revoke", f"{records.MOUNT.point}leases", {"broker_ahead_ms": ahead_ms})
        scribe = self.parts.scribe
        told = f"clocks disagree on connection {connection.name}: mass expiry waits"
        entry = scribe.response(now, scribe.asked(NOBODY, request), None, error=told)
        await self.parts.trail.record([entry])
        return _ASK_AGAIN_MS
