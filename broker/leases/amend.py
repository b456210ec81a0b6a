"""Amend: differences between database and store are put right, each by the normal way of a lease.

Whatever ends a user is a durable transition of its lease, and the revocation does the rest. A login is turned on only once that is in
the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from msgspec.structs import replace

from broker.catalog.connections import Connection
from broker.catalog.roles import lease_path
from broker.engines.protocol import Engine
from broker.leases import lifecycle, logins, stages
from broker.leases.differences import Finding, Kind
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import NO_TOKEN, Lease, LeaseFacts, LeaseNumber, LeaseState
from broker.store.words import Move, Reservation

_NO_ROLE = "unknown"
_INTENT_MS = 60_000
_EVENTS = {
    Kind.BACK: (Event.SEEN_AGAIN, "seen again"),
    Kind.LEFT_BEHIND: (Event.SEEN_AGAIN, "seen again"),
    Kind.LOGIN_ON: (Event.UNWANTED, "its login was on"),
}


class Scope(Enum):
    """What may be done about differences."""

    NOTHING = auto()
    """They are only told."""
    SAFE = auto()
    """What no doubt is possible about: users of ended leases are revoked, leases without a user ended, logins put right."""
    ALL = auto()
    """Users that the store does not know, or was made to forget, are revoked too."""


_SAFE = frozenset({Kind.BACK, Kind.MISSING, Kind.LOGIN_OFF, Kind.LOGIN_ON, Kind.ENDS_EARLY})
_DONE = {Scope.NOTHING: frozenset[Kind](), Scope.SAFE: _SAFE, Scope.ALL: _SAFE | {Kind.UNKNOWN, Kind.LEFT_BEHIND}}
ACCESS = frozenset({Kind.LOGIN_OFF, Kind.ENDS_EARLY})
"""What gives access instead of taking it away."""


def amendable(finding: Finding, scope: Scope) -> bool:
    """Whether something may be done about it."""
    return finding.kind in _DONE[scope]


async def end(parts: Parts, connection: Connection, findings: Sequence[Finding]) -> frozenset[LeaseNumber]:
    """Begins to revoke the users of these findings, durably; answers the numbers of those that had not changed meanwhile."""
    strangers = [finding for finding in findings if finding.lease is None]
    if strangers:
        # The intent first, as for any user; a crash from here on leaves one that start-up ends.
        await parts.store.prepare([_intent(connection, finding) for finding in strangers])
    now = parts.store.now_ms()
    moves = [_adopted(connection, finding, now) for finding in strangers]
    moves += [_ended(finding, finding.lease, now) for finding in findings if finding.lease is not None]
    moved = await parts.store.move(moves) if moves else frozenset()
    parts.wake_expiry()
    return moved


async def turn_on(parts: Parts, engine: Engine, findings: Sequence[Finding]) -> frozenset[LeaseNumber]:
    """Lets the users of active leases log in until these end; answers the numbers of those for whom it worked.

    Raises `DatabaseUnavailable`; some may be turned on then.
    """
    outcomes = await logins.turn_on(parts, engine, [finding.user.number for finding in findings])
    return frozenset(outcome.number for outcome in outcomes if outcome.error is None)


def _intent(connection: Connection, finding: Finding) -> Reservation:
    return Reservation(
        number=finding.user.number,
        connection=connection.number,
        token=NO_TOKEN,
        facts=_facts(connection, finding),
        due_in_ms=_INTENT_MS,
    )


def _facts(connection: Connection, finding: Finding) -> LeaseFacts:
    return LeaseFacts(
        path=lease_path(_NO_ROLE),
        role=_NO_ROLE,
        role_revision=0,
        connection_name=connection.name,
        username=finding.user.name,
        identity=finding.user.identity,
        reason="unknown to the store",
    )


def _adopted(connection: Connection, finding: Finding, now_ms: int) -> Move:
    return Move(
        number=finding.user.number,
        expect=(LeaseState.PREPARING,),
        to=lifecycle.target(Event.ENDED),
        due_in_ms=0,
        facts=replace(_facts(connection, finding), revoke_started_ms=now_ms),
    )


def _ended(finding: Finding, lease: Lease, now_ms: int) -> Move:
    event, reason = _EVENTS.get(finding.kind, (Event.ENDED, "its user was missing"))
    return Move(
        number=lease.number,
        expect=(lease.state,),
        to=lifecycle.target(event),
        due_in_ms=0,
        epoch=lease.epoch,
        facts=stages.begun_anew(lease.facts, reason, now_ms),
    )
