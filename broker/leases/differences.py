"""What a connection's database and the store say of each other's users, page by page, and where they differ.

Both change while they are compared. So a difference counts only when it is found twice: after the first look the store is read once
more, then the database is asked once more. What a call is busy with, an intent, a revocation under way: none of these is a difference.
Memory is that of a page, however many users there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.engines.protocol import Engine, Seen, Standing, User
from broker.errors import SealBroken
from broker.leases import lifecycle
from broker.leases.parts import Parts
from broker.model import Lease, LeaseNumber, LeaseState, Stage, Terms

PAGE = 500
_EARLY_MS = 60_000
"""A request takes its time, and clocks drift; ends that are closer than this are the same."""
_COMPARED = (LeaseState.ACTIVE, LeaseState.PREPARED)


class Kind(StrEnum):
    """How database and store differ about one user."""

    UNKNOWN = "unknown_user"
    """Its marker is this broker's, and the store has no lease of it: the store was restored to an older copy."""
    BACK = "user_back"
    """Its lease is gone: a failover or a restored database brought it back."""
    LEFT_BEHIND = "left_behind"
    """Its lease was taken off the books by force, and the user was left in the database."""
    FORGED = "forged_marker"
    """Its marker has this broker's form, and no lease of this name could have it."""
    UNREADABLE = "unreadable_lease"
    """Its lease is in the store and does not open: the row was damaged."""
    ELSEWHERE = "elsewhere"
    """Its lease belongs to a connection to another database cluster, of which this one must be a copy, or to none any longer."""
    MISSING = "missing_user"
    """The lease is active or prepared, and its user does not exist."""
    LOGIN_OFF = "login_off"
    """The lease is active, and its user can't log in."""
    LOGIN_ON = "login_on"
    """The lease is prepared, and its user can log in."""
    ENDS_EARLY = "ends_early"
    """The lease is active, and the database would refuse its user before it ends."""


class Finding(Struct, frozen=True, kw_only=True):
    """One difference. `lease` is None where the store has none."""

    kind: Kind
    user: User
    lease: Lease | None = None


@dataclass(slots=True)
class Compared:
    """How far a comparison has come."""

    users: int = 0
    leases: int = 0


@dataclass(slots=True)
class Comparison:
    """Compares what one connection's database holds with what the store says of it. Changes nothing."""

    parts: Parts
    connection: Connection
    engine: Engine
    compared: Compared = field(default_factory=Compared)
    ahead_ms: int = 0
    """By how much the database's clock is ahead of ours, as it was when its leases began to be compared."""

    async def users(self) -> AsyncIterator[list[Finding]]:
        """Users of the database about whom the store says otherwise, page by page. Raises `DatabaseUnavailable`, `StoreUnavailable`."""
        page: list[Seen] = []
        async for seen in self.engine.list_users():
            page.append(seen)
            if len(page) == PAGE:
                yield await self._page_of_users(page)
                page = []
        if page:
            yield await self._page_of_users(page)

    async def leases(self) -> AsyncIterator[list[Finding]]:
        """Leases whose users the database has otherwise, page by page. Raises what `users` does."""
        if self.engine.traits.server_expiry:
            self.ahead_ms = (await self.engine.health()).server_time_ms - self.parts.store.now_ms()
        began_ms = self.parts.store.now_ms()
        for state in _COMPARED:
            beyond: Lease | None = None
            while page := await self.parts.store.leases_at(self.connection.number, state, beyond=beyond, limit=PAGE):
                beyond = page[-1]
                # One that was renewed since comes a second time, with its later end; and the database has just had its user.
                yield await self._page_of_leases([lease for lease in page if lease.facts.renewed_ms < began_ms])

    async def _page_of_users(self, page: Sequence[Seen]) -> list[Finding]:
        self.compared.users += len(page)
        claimed = [(seen, self.parts.markers.number_in(seen.marker)) for seen in page]
        first = await self._judged(claimed)
        if not first:
            return []
        doubtful = {finding.user.name: finding.kind for finding in first}
        standings = await self._look_up([finding.user for finding in first if finding.user.number])
        # By identity too: of two users with the same marker one may be gone.
        there = {(standing.number, standing.identity) for standing in standings}
        again = [
            (seen, number)
            for seen, number in claimed
            if seen.name in doubtful and (number is None or (number, seen.identity) in there)
        ]
        second = [finding for finding in await self._judged(again) if doubtful[finding.user.name] is finding.kind]
        return [await self._told_apart(finding) for finding in second]

    async def _told_apart(self, finding: Finding) -> Finding:
        """Lists of leases pass over a row that does not open: its user is not one that the store does not know."""
        if finding.kind is Kind.UNKNOWN:
            try:
                await self.parts.store.lease(finding.user.number)
            except SealBroken:
                return replace(finding, kind=Kind.UNREADABLE)
        return finding

    async def _judged(self, claimed: Sequence[tuple[Seen, LeaseNumber | None]]) -> list[Finding]:
        leases = await self._leases({number for _, number in claimed if number is not None})
        judged = [self._judge_user(seen, number, leases.get(number) if number else None) for seen, number in claimed]
        return [finding for finding in judged if finding is not None]

    def _judge_user(self, seen: Seen, number: LeaseNumber | None, lease: Lease | None) -> Finding | None:
        markers = self.parts.markers
        user = User(number=number or LeaseNumber(0), name=seen.name, identity=seen.identity, marker=seen.marker, terms=Terms())
        proper = number is not None and markers.marker(number, seen.name) == seen.marker
        if lease is None:
            return Finding(kind=Kind.UNKNOWN if proper else Kind.FORGED, user=user)
        own = markers.of(lease)
        # Two of identity, name and marker make it the lease's: somebody may have renamed it.
        if seen.marker != own.marker or (seen.name != own.name and seen.identity != own.identity):
            return Finding(kind=Kind.FORGED, user=user, lease=lease)
        if not self._same_cluster(lease):
            return Finding(kind=Kind.ELSEWHERE, user=user, lease=lease)
        if lease.state is not LeaseState.GONE or lease.connection != self.connection.number:
            return None
        return Finding(kind=Kind.BACK if lease.stage is Stage.ABSENT else Kind.LEFT_BEHIND, user=own, lease=lease)

    def _same_cluster(self, lease: Lease) -> bool:
        if lease.connection == self.connection.number:
            return True
        other = next((each for each in self.parts.catalog.connections() if each.number == lease.connection), None)
        return other is not None and (not other.cluster or other.cluster == self.connection.cluster)

    async def _page_of_leases(self, page: Sequence[Lease]) -> list[Finding]:
        self.compared.leases += len(page)
        first = await self._differing(page)
        if not first:
            return []
        before = {finding.user.number: finding for finding in first}
        now = await self._leases(before)
        unchanged = [lease for lease in now.values() if _same(before[lease.number].lease, lease)]
        return [finding for finding in await self._differing(unchanged) if before[finding.user.number].kind is finding.kind]

    async def _differing(self, leases: Sequence[Lease]) -> list[Finding]:
        # Read before who is busy: an active lease that nobody is busy with has been given its login.
        unsettled = self.parts.holds.logins | self.parts.holds.renewals
        settled = [lease for lease in leases if lease.number not in unsettled and not self._over(lease)]
        if not settled:
            return []
        users = {lease.number: self.parts.markers.of(lease) for lease in settled}
        found = {standing.number: standing for standing in await self._look_up(list(users.values()))}
        kinds = ((lease, self._judge_lease(lease, found.get(lease.number))) for lease in settled)
        return [Finding(kind=kind, user=users[lease.number], lease=lease) for lease, kind in kinds if kind is not None]

    def _judge_lease(self, lease: Lease, standing: Standing | None) -> Kind | None:
        if standing is None:
            return Kind.MISSING
        if lease.state is LeaseState.PREPARED:
            return Kind.LOGIN_ON if standing.can_login else None
        if not standing.can_login:
            return Kind.LOGIN_OFF
        ends_ms = lifecycle.ends_ms(lease) + self.ahead_ms
        early = standing.expires_ms is not None and standing.expires_ms < ends_ms - _EARLY_MS
        return Kind.ENDS_EARLY if early else None

    def _over(self, lease: Lease) -> bool:
        """Whether it is about to be ended anyway."""
        return lease.state is LeaseState.ACTIVE and lifecycle.ends_ms(lease) <= self.parts.store.now_ms()

    async def _look_up(self, users: Sequence[User]) -> list[Standing]:
        batches = self.engine.traits.batches(users)
        return [standing for batch in batches for standing in await self.engine.look_up(batch)]

    async def _leases(self, numbers: Collection[LeaseNumber]) -> Mapping[LeaseNumber, Lease]:
        return {lease.number: lease for lease in await self.parts.store.leases(numbers)} if numbers else {}


def _same(before: Lease | None, now: Lease) -> bool:
    """Whether it was neither moved, nor claimed, nor renewed."""
    return before is not None and _version(before) == _version(now)


def _version(lease: Lease) -> tuple[object, ...]:
    return lease.state, lease.epoch, lease.due_ms, lease.facts.expires_ms
