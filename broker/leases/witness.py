"""Before many leases end at once, the database's own clock is asked whether it is really that late.

A clock that jumped would otherwise end every lease at once, silently. Where clock and database disagree by over a minute, expiry on
that connection waits and says so, for ten minutes at most: broker time never goes back, so after one start with a clock far ahead
the two disagree for as long as it was ahead, and no lease may live on for that. Where the database does not answer within a minute,
leases end too: the safe side.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from broker.audit.entry import NOBODY
from broker.catalog.connections import Connection
from broker.engines.protocol import Engine
from broker.errors import AuditUnavailable, EngineError
from broker.leases import records
from broker.leases.parts import Parts
from broker.model import ConnectionNumber

_TOLERANCE_MS = 60_000
_SILENCE_MS = 60_000
_DOUBT_MS = 600_000
"""How long disagreeing clocks may hold back what fell due: time to set a clock right, and no more life for a lease than that."""
_ASK_AGAIN_MS = 5_000
_WAITS = "mass expiry waits"
_GOES_ON = "they did for ten minutes, leases end"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Witness:
    """Remembers since when each connection's database has been silent, or its clock another one; a restart begins anew."""

    parts: Parts
    silent_since_ms: dict[ConnectionNumber, int]
    disagree_since_ms: dict[ConnectionNumber, int] = field(default_factory=dict)
    """By broker time, which nobody sets. Only clocks that agree again end a doubt; silence in between does not."""
    in_doubt: set[ConnectionNumber] = field(default_factory=set)
    """Connections whose expiry was told to wait last: there even a single lease waits for a better answer."""
    _told: set[tuple[ConnectionNumber, str]] = field(default_factory=set)

    @property
    def many(self) -> int:
        """From how many leases at once on it is odd; a full batch is many, however small it is."""
        return min(self.parts.settings.mass_expiry, self.parts.settings.revocation_batch)

    def needed(self, connection: Connection, count: int) -> bool:
        """Whether so many may not end before the database was asked; one more after a doubt may not, either."""
        return count >= self.many or connection.number in self.in_doubt

    async def wait_ms(self, connection: Connection, engine: Engine) -> int:
        """How long a mass expiry on this connection must wait before asking again; 0: go on."""
        wait_ms = await self._wait_ms(connection, engine)
        if wait_ms:
            self.in_doubt.add(connection.number)
        else:
            self.in_doubt.discard(connection.number)
        return wait_ms

    async def _wait_ms(self, connection: Connection, engine: Engine) -> int:
        number = connection.number
        now = self.parts.store.now_ms()
        try:
            health = await engine.health()
        except EngineError:
            since = self.silent_since_ms.setdefault(number, now)
            return 0 if now - since >= _SILENCE_MS else _ASK_AGAIN_MS
        self.silent_since_ms.pop(number, None)
        ahead_ms = now - health.server_time_ms
        if abs(ahead_ms) <= _TOLERANCE_MS:
            self.disagree_since_ms.pop(number, None)
            self._told -= {(number, _WAITS), (number, _GOES_ON)}
            return 0
        since = self.disagree_since_ms.setdefault(number, now)
        if now - since < _DOUBT_MS:
            await self._tell_once(connection, ahead_ms, _WAITS)
            return _ASK_AGAIN_MS
        # Taking access away does not wait for the audit log; what it could not take is offered again with the next batch.
        with suppress(AuditUnavailable):
            await self._tell_once(connection, ahead_ms, _GOES_ON)
        return 0

    async def _tell_once(self, connection: Connection, ahead_ms: int, what: str) -> None:
        """Logs and audits it, once a doubt. Raises `AuditUnavailable`, and then tells it again the next time."""
        if (connection.number, what) in self._told:
            return
        told = f"clocks disagree on connection {connection.name}: {what}"
        log.error(told, connection=connection.name, broker_ahead_s=ahead_ms / 1_000)
        request = records.new_request("revoke", f"{records.MOUNT.point}leases", {"broker_ahead_ms": ahead_ms})
        scribe = self.parts.scribe
        entry = scribe.response(self.parts.store.now_ms(), scribe.asked(NOBODY, request), None, error=told)
        await self.parts.trail.record([entry])
        self._told.add((connection.number, what))
