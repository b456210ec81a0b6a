"""Contain: what is past its time loses its login and its sessions also while the store can't be written.

Nothing of it is written down, so nothing of it counts as done: once the store can be written, each lease is ended from its first stage on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog
from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.engines.protocol import Engine, Outcome, User
from broker.errors import DatabaseUnavailable
from broker.leases import grace, lifecycle
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.witness import Witness
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage

_FALLEN = (LeaseState.ACTIVE, LeaseState.GRACE)
"""These end by time alone, so a clock that jumped must not contain them."""
_ENDING = (LeaseState.REVOKING, LeaseState.STUCK, LeaseState.RESERVED)

log = structlog.get_logger(__name__)


class Containment:
    """Remembers how far it has come while the store can't be written, so that nobody is contained again and again."""

    def __init__(self, parts: Parts, witness: Witness) -> None:
        self._parts = parts
        self._witness = witness
        self._beyond: dict[tuple[ConnectionNumber, LeaseState], Lease] = {}
        """Where each run of the due index was left; what falls due later stands behind it."""
        self._contained: dict[ConnectionNumber, set[LeaseNumber]] = {}
        """Of what was claimed before, and stands elsewhere in that index: a batch or two."""

    def over(self, connection: ConnectionNumber) -> None:
        """The store can be written."""
        self._contained.pop(connection, None)
        for state in (*_FALLEN, *_ENDING):
            self._beyond.pop((connection, state), None)

    async def run(self, connection: Connection, engine: Engine, claimed: Collection[Lease]) -> None:
        """Takes away what is due on a connection, and what was claimed there and cut short.

        Raises `EngineError` where the database does not answer, and what reading the store raises; it may be asked again.
        """
        limit, done = self._parts.settings.revocation_batch, self._contained.setdefault(connection.number, set())
        cut_short = [lease for lease in claimed if lease.number not in done]
        states: Sequence[LeaseState] = (*_ENDING, *_FALLEN)
        if await self._doubtful(connection, engine, sum(lease.state in _FALLEN for lease in cut_short)):
            states = _ENDING
        chosen = [lease for lease in cut_short if lease.state in states]
        if await self._contain(connection, engine, chosen):
            done.update(lease.number for lease in chosen)
        for state in states:
            while page := await self._page(connection, state, limit):
                if not await self._contain(connection, engine, page):
                    return
                self._beyond[connection.number, state] = page[-1]

    async def _doubtful(self, connection: Connection, engine: Engine, cut_short: int) -> bool:
        fallen = cut_short + sum([len(await self._page(connection, state, self._witness.many)) for state in _FALLEN])
        return self._witness.needed(connection, fallen) and bool(await self._witness.wait_ms(connection, engine))

    async def _page(self, connection: Connection, state: LeaseState, limit: int) -> list[Lease]:
        beyond = self._beyond.get((connection.number, state))
        leases = await self._parts.store.leases_at(connection.number, state, beyond=beyond, limit=limit)
        now = self._parts.store.now_ms()
        return [lease for lease in leases if lease.due_ms <= now]

    async def _contain(self, connection: Connection, engine: Engine, leases: Sequence[Lease]) -> bool:
        """Whether all of them need not be looked at again: a call may be giving one its login, or the database be away."""
        held = [lease for lease in leases if lease.number in self._parts.holds.logins]
        users = self._users([lease for lease in leases if lease.number not in self._parts.holds.logins])
        if not users:
            return not held
        off = await engine.disable(list(users.values()))
        ending = [user for user in users.values() if not user.spared]
        ended = await engine.end_sessions(ending) if ending else ()
        failures = {outcome.number: outcome for outcome in (*off, *ended) if outcome.error is not None}
        log.warning(
            "contained without the store",
            connection=connection.name,
            leases=len(users),
            failed=len(failures),
            **_first(failures),
        )
        return not held and not any(isinstance(outcome.error, DatabaseUnavailable) for outcome in failures.values())

    def _users(self, leases: Sequence[Lease]) -> Mapping[LeaseNumber, User]:
        """Of those that are still to be contained."""
        now = self._parts.store.now_ms()
        todo = [lease for lease in leases if lease.attempts or lease.stage < Stage.SESSIONS_ENDED]
        return {lease.number: replace(self._parts.markers.of(lease), spared=_spared(lease, now)) for lease in todo}


def _spared(lease: Lease, now_ms: int) -> bool:
    """Whether its sessions may go on for a while yet."""
    return bool(lease.facts.session_grace_s) and lease.state in lifecycle.expected(Event.SPARED) and grace.owed(lease, now_ms)


def _first(failures: Mapping[LeaseNumber, Outcome]) -> Mapping[str, object]:
    return {"first": next(iter(failures)), "error": str(next(iter(failures.values())).error)} if failures else {}
