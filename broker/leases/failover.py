"""Failover: where another server takes over that lacks the last commits of its predecessor, recent leases are checked again.

Such a server brings back users that were dropped, lacks ones that were issued, and has logins and expiries as they were before. So on a
new timeline each tombstone since then is looked for, and revoked again where its user is back; revocations under way start anew; an
active lease whose user is missing ends; a login or an expiry that was lost is applied again. The timeline counts as known only when all
of that is done, so whatever breaks it off, it begins again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from broker.audit.entry import NOBODY, AuditResponse
from broker.catalog.connections import STEPPED_BACK, Connection, replaced, superseded
from broker.engines.protocol import Engine, Health, Standing
from broker.errors import BrokerError, DatabaseUnavailable
from broker.leases import lifecycle, logins, records, stages
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.words import Move

_PAGE = 256
_POLL_S = 0.05
_IN_FLIGHT_S = 60.0
_TOLERANCE_MS = 1_000
_REVIVED = "brought back by a failover"
_LOST = "its user was lost in a failover"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Check:
    """The check of one connection on one timeline; kept when it breaks off, so that what was found is told in the end."""

    connection: Connection
    timeline: str
    addresses: tuple[str, ...]
    since_ms: int
    """What was done before this can't have been lost; 0: anything may."""
    revived: int = 0
    lost: int = 0
    restored: int = 0


@dataclass(slots=True)
class Failover:
    """Knows each connection's timeline, and checks in the background when it changes."""

    parts: Parts
    _known: dict[ConnectionNumber, str] = field(default_factory=dict)
    _seen_ms: dict[ConnectionNumber, int] = field(default_factory=dict)
    """When this process saw the known timeline last."""
    _checks: dict[ConnectionNumber, _Check] = field(default_factory=dict)
    _running: dict[ConnectionNumber, asyncio.Task[None]] = field(default_factory=dict)
    _concerns: dict[ConnectionNumber, tuple[str, ...]] = field(default_factory=dict)

    async def notice(self, connection: Connection, health: Health) -> None:
        """Takes in what a server said of itself: starts a check on a new timeline, tells concerns once.

        A lower timeline than the known one is no failover but a superseded server: its sessions are closed, and it is not worked with
        before the connection is reset. Raises `DatabaseUnavailable` then.
        """
        number = connection.number
        if health.concerns != self._concerns.get(number, ()):
            self._concerns[number] = health.concerns
            for concern in health.concerns:
                log.error("servers disagree who is the primary", connection=connection.name, concern=concern)
        known = self._known.setdefault(number, connection.timeline)
        if not health.timeline or number in self._running:
            return
        if connection.timeline == STEPPED_BACK != known:
            # The connection was reset, so this server is meant; when it was left behind, nobody knows.
            known = self._known[number] = STEPPED_BACK
            self._seen_ms.pop(number, None)
            self._checks.pop(number, None)
        if superseded(health.timeline, known):
            await self.parts.catalog.reopen(connection)
            return
        if known and (health.timeline != known or replaced(connection, health)):
            self._start(connection, health)
            return
        # At the first look there is nothing to compare with, and further names of a server are no other one.
        if not known or not {*health.addresses} <= {*connection.addresses}:
            names = dict.fromkeys((*connection.addresses, *health.addresses))
            await self._note(connection, health.timeline, tuple(names))
        self._seen_ms[number] = self.parts.store.now_ms()

    async def stop(self) -> None:
        """Ends the checks where they are; they begin anew at the next start."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, connection: Connection, health: Health) -> None:
        number = connection.number
        check = self._checks.get(number)
        if check is None or check.timeline != health.timeline:
            check = self._checks[number] = _Check(connection, health.timeline, health.addresses, self._since_ms(number, health))
            self.parts.metrics.failovers.labels(connection.name).inc()
            log.warning("another server has taken over", connection=connection.name, timeline=health.timeline)
        task = asyncio.get_running_loop().create_task(self._run(check))
        self._running[number] = task
        task.add_done_callback(lambda _: self._running.pop(number))

    def _since_ms(self, number: ConnectionNumber, health: Health) -> int:
        """From when on things may be lost: what the new server kept ends, or the old one was seen last, and a margin before that."""
        times = [ms for ms in (self._seen_ms.get(number), health.kept_until_ms) if ms is not None]
        return max(0, min(times) - self.parts.settings.failover_margin * 1_000) if times else 0

    async def _run(self, check: _Check) -> None:
        try:
            await self._check(check)
            await self._tell(check)
            await self._note(check.connection, check.timeline, check.addresses)
        except BrokerError as error:
            log.warning("check after a failover begins again", connection=check.connection.name, error=str(error))
            return
        del self._checks[check.connection.number]

    async def _check(self, check: _Check) -> None:
        engine = await self.parts.catalog.engine_for(check.connection)
        in_flight = await self._in_flight(check)
        await self._begin_again(check)
        last = await self._revive(check, engine, None)
        # What was under way as the server changed comes out one way or the other; later work goes to the new server.
        await self._until_settled(in_flight)
        await self._active(check, engine)
        await self._prepared(check, engine)
        await self._revive(check, engine, last)

    async def _in_flight(self, check: _Check) -> set[LeaseNumber]:
        found = set(self.parts.holds.logins)
        for state in (LeaseState.RESERVED, LeaseState.PREPARING):
            last: Lease | None = None
            while page := await self._page(check, state, last):
                found |= {lease.number for lease in page}
                last = page[-1]
        return found

    async def _until_settled(self, numbers: set[LeaseNumber]) -> None:
        deadline_s = asyncio.get_running_loop().time() + _IN_FLIGHT_S
        under_way = (LeaseState.RESERVED, LeaseState.PREPARING)
        while numbers and asyncio.get_running_loop().time() < deadline_s:
            found = await self.parts.store.leases(numbers)
            numbers = {lease.number for lease in found if lease.state in under_way or lease.number in self.parts.holds.logins}
            if numbers:
                await asyncio.sleep(_POLL_S)

    async def _begin_again(self, check: _Check) -> None:
        """Revocations under way start at their first stage, now: what they did may be undone."""
        for state in (LeaseState.REVOKING, LeaseState.STUCK, LeaseState.GRACE):
            last: Lease | None = None
            while page := await self._page(check, state, last):
                last = page[-1]
                await self.parts.store.move([stages.from_the_start(lease) for lease in page])
        self.parts.wake_expiry()

    async def _revive(self, check: _Check, engine: Engine, last: Lease | None) -> Lease | None:
        """Tombstones beyond `last` whose users are back are revoked again; answers the last one that was looked at."""
        while page := await self._page(check, LeaseState.GONE, last):
            last = page[-1]
            # One that an operator forced off the books may be there: that is no news.
            recent = [lease for lease in page if lease.stage is Stage.ABSENT and self._gone_ms(lease) >= check.since_ms]
            back = await self._look_up(engine, recent)
            moves = [self._ending(lease, Event.SEEN_AGAIN, _REVIVED) for lease in recent if lease.number in back]
            check.revived += await self._move(check, moves, "revived")
        return last

    def _gone_ms(self, lease: Lease) -> int:
        """When its user was dropped, or later: how long tombstones are kept may have been changed since."""
        kept_ms = self.parts.settings.tombstones * 1_000
        return max(lease.due_ms - kept_ms, lease.facts.expires_ms, lease.facts.revoke_started_ms)

    async def _active(self, check: _Check, engine: Engine) -> None:
        last: Lease | None = None
        while page := await self._page(check, LeaseState.ACTIVE, last):
            last = page[-1]
            since = check.since_ms
            recent = [lease for lease in page if max(lease.facts.issued_ms, lease.facts.renewed_ms) >= since]
            recent = [lease for lease in recent if lease.number not in self.parts.holds.logins]
            standings = await self._look_up(engine, recent)
            missing = [lease for lease in recent if lease.number not in standings]
            check.lost += await self._move(check, [self._ending(lease, Event.ENDED, _LOST) for lease in missing], "lost")
            here = [lease for lease in recent if lease.number in standings]
            await self._restore(check, engine, [lease for lease in here if _lags(lease, standings[lease.number])], standings)

    async def _prepared(self, check: _Check, engine: Engine) -> None:
        last: Lease | None = None
        while page := await self._page(check, LeaseState.PREPARED, last):
            last = page[-1]
            standings = await self._look_up(engine, page)
            missing = [lease for lease in page if lease.number not in standings]
            check.lost += await self._move(check, [self._ending(lease, Event.UNWANTED, _LOST) for lease in missing], "lost")

    async def _restore(
        self, check: _Check, engine: Engine, leases: Sequence[Lease], standings: Mapping[LeaseNumber, Standing]
    ) -> None:
        """Turns on logins that are off, and moves expiries that are too early; nothing of a lease that is being revoked."""
        off = [lease.number for lease in leases if not standings[lease.number].can_login]
        early = [lease.number for lease in leases if standings[lease.number].can_login]
        outcomes = [*await logins.turn_on(self.parts, engine, off), *await logins.prolong(self.parts, engine, early)]
        for outcome in outcomes:
            if isinstance(outcome.error, DatabaseUnavailable):
                raise outcome.error
            if outcome.error is not None:
                log.warning("login not restored", lease=outcome.number, error=str(outcome.error))
        done = [outcome.number for outcome in outcomes if outcome.error is None]
        check.restored += self._count(check, "restored", done)

    async def _look_up(self, engine: Engine, leases: Sequence[Lease]) -> dict[LeaseNumber, Standing]:
        found: dict[LeaseNumber, Standing] = {}
        for batch in engine.traits.batches(leases):
            users = [self.parts.markers.of(lease) for lease in batch]
            found.update((standing.number, standing) for standing in await engine.look_up(users))
        return found

    async def _move(self, check: _Check, moves: Sequence[Move], kind: str) -> int:
        moved = await self.parts.store.move(moves) if moves else frozenset[LeaseNumber]()
        if moved:
            self.parts.wake_expiry()
        return self._count(check, kind, moved)

    def _count(self, check: _Check, kind: str, numbers: Iterable[LeaseNumber]) -> int:
        found = list(numbers)
        for number in found:
            log.warning("a failover undid something", connection=check.connection.name, kind=kind, lease=number)
        if found:
            self.parts.metrics.failover_findings.labels(check.connection.name, kind).inc(len(found))
        return len(found)

    async def _page(self, check: _Check, state: LeaseState, beyond: Lease | None) -> Sequence[Lease]:
        return await self.parts.store.leases_at(check.connection.number, state, beyond=beyond, limit=_PAGE)

    async def _tell(self, check: _Check) -> None:
        """The audit log has what came of it; each lease that ends has an entry of its own, with the reason."""
        parts, data = self.parts, {"connection": check.connection.name}
        asked = parts.scribe.asked(NOBODY, records.new_request("failover", f"{records.MOUNT.point}leases", data))
        found = {"revived": check.revived, "lost": check.lost, "restored": check.restored}
        now = parts.store.now_ms()
        answer = AuditResponse(mount=records.MOUNT, data=found)
        await parts.trail.record([parts.scribe.request(now, asked), parts.scribe.response(now, asked, answer)])
        log.warning("checked leases after a failover", connection=check.connection.name, timeline=check.timeline, **found)

    async def _note(self, connection: Connection, timeline: str, addresses: tuple[str, ...]) -> None:
        await self.parts.catalog.note_timeline(connection, timeline, addresses)
        self._known[connection.number] = timeline

    def _ending(self, lease: Lease, event: Event, reason: str) -> Move:
        return Move(
            number=lease.number,
            expect=lifecycle.expected(event) if event is Event.SEEN_AGAIN else (lease.state,),
            to=lifecycle.target(event),
            due_in_ms=0,
            epoch=lease.epoch,
            facts=stages.begun_anew(lease.facts, reason, self.parts.store.now_ms()),
        )


def _lags(lease: Lease, standing: Standing) -> bool:
    """Whether the user can't log in as long as its lease lasts."""
    early = standing.expires_ms is not None and standing.expires_ms < lifecycle.ends_ms(lease) - _TOLERANCE_MS
    return early or not standing.can_login
