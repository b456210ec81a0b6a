"""The job that keeps every role's prepared users at their number."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.errors import BrokerError, InvalidRequest
from broker.leases.parts import Parts
from broker.leases.prepare import Pools, Wanted
from broker.leases.recipe import recipe

_PAUSE_FIRST_MS = 1_000
_PAUSE_MOST_MS = 300_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Pause:
    """After how many failures a role's refill waits, until when, and for which revisions of role and connection that holds."""

    concerns: tuple[int, int]
    failures: int
    until_ms: int


class Refill:
    """The job that keeps every pool at its size."""

    def __init__(self, parts: Parts, pools: Pools) -> None:
        self._parts = parts
        self._pools = pools
        self._known: dict[str, Wanted | None] = {}
        self._pauses: dict[str, _Pause] = {}

    async def run(self) -> int:
        """Drains what roles no longer want and makes one batch for each that is short; answers how many were made.

        A role whose batch failed waits: from a second, doubling, to five minutes, until its own or its connection's next
        revision. Then one user is tried alone.
        """
        made = 0
        roles = {role.path: role for role in self._parts.catalog.roles()}
        for path in [path for path in self._known if path not in roles]:
            await self._pools.drain(path, None)
            del self._known[path]
            self._pauses.pop(path, None)
        for role in roles.values():
            made += await self._refill(role)
        return made

    async def _refill(self, role: Role) -> int:
        path, connection, now_ms = role.path, self._connection(role), self._parts.store.now_ms()
        concerns = (role.revision, 0 if connection is None else connection.revision)
        pause = self._pauses.get(path)
        if pause is None or pause.concerns != concerns:
            pause = _Pause(concerns, 0, now_ms)
        elif now_ms < pause.until_ms:
            return 0
        try:
            wanted = Wanted(recipe(role), role.prepared_users, None if connection is None else connection.number)
            if self._known.get(path) != wanted:
                await self._pools.drain(path, wanted)
                self._known[path] = wanted
            most = 1 if pause.failures else self._parts.settings.refill_batch
            made = await self._pools.refill(role, most) if role.prepared_users else 0
        except BrokerError as error:
            wait_ms = min(_PAUSE_MOST_MS, _PAUSE_FIRST_MS << min(pause.failures, 20))
            self._pauses[path] = _Pause(concerns, pause.failures + 1, now_ms + wait_ms)
            log.warning("refill failed", role=role.name, connection=role.db_name, error=str(error), again_in_s=wait_ms // 1_000)
            return 0
        if made:
            self._pauses.pop(path, None)
        return made

    async def forget_unknown_roles(self) -> None:
        """At start: ends prepared users of roles that were deleted while the broker was down."""
        for path in await self._parts.store.list_pools():
            self._known.setdefault(path, None)

    def _connection(self, role: Role) -> Connection | None:
        try:
            return self._parts.catalog.connection(role.db_name)
        except InvalidRequest:
            return None
