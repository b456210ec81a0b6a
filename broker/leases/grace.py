"""Grace: the time of a lease is over, its login goes at once, and its open sessions may go on for as long as its role allows.

The wait is a due time, and where it ends the revocation begins at its first stage. Whoever ends a lease meanwhile moves it to
`revoking`, as before; from there it never comes back here.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from broker.engines.protocol import Engine, Outcome
from broker.errors import DatabaseUnavailable, EngineError
from broker.leases import lifecycle, stages
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import Lease, LeaseState, Stage
from broker.store.words import Move


def owed(lease: Lease, now_ms: int) -> bool:
    """Whether this lease's sessions may go on for a while yet, though its time is over."""
    until_ms = lifecycle.sessions_end_ms(lease)
    return until_ms is not None and until_ms > now_ms


async def spare(parts: Parts, engine: Engine, leases: Sequence[Lease]) -> DatabaseUnavailable | None:
    """Takes the logins of claimed leases away, durably, and lets their sessions be until the grace is over.

    A lease whose login can't be turned off is revoked like one without a grace. Answers the reason where the database is away: those
    are then due again soon, in their grace still. Raises `Unavailable` when the store can't be written.
    """
    begun = {lease.number: _begun(lease) for lease in leases}
    # First in the store: whoever gives logins to active leases then sees that these are none any longer.
    moved = await parts.store.move([_spared(lease, stages.HOLD_MS) for lease in begun.values()])
    spared = {number: lease for number, lease in begun.items() if number in moved}
    if not spared:
        return None
    try:
        outcomes = await engine.disable([replace(parts.markers.of(lease), spared=True) for lease in spared.values()])
    except EngineError as error:
        outcomes = [Outcome(number, error) for number in spared]
    now, away, moves = parts.store.now_ms(), None, []
    for outcome in outcomes:
        lease = spared[outcome.number]
        if outcome.error is None:
            moves.append(_waiting(lease, now))
            continue
        parts.metrics.revocation_failures.labels(lease.facts.connection_name, Stage.LOGIN_OFF.name.lower()).inc()
        if isinstance(outcome.error, DatabaseUnavailable):
            away = outcome.error
            moves.append(_spared(lease, away.retry_after_s * 1_000))
        else:
            moves.append(_ended(lease))
    await parts.store.move(moves)
    return away


def _begun(lease: Lease) -> Lease:
    """The lease in its grace; one that was in it before keeps what it has."""
    if lease.state is LeaseState.GRACE:
        return lease
    facts = replace(lease.facts, password=None, revoke_started_ms=lifecycle.ends_ms(lease))
    return replace(lease, state=LeaseState.GRACE, facts=facts)


def _spared(lease: Lease, due_in_ms: int) -> Move:
    return Move(
        number=lease.number,
        expect=lifecycle.expected(Event.SPARED),
        to=lifecycle.target(Event.SPARED),
        due_in_ms=due_in_ms,
        epoch=lease.epoch,
        facts=lease.facts,
    )


def _waiting(lease: Lease, now_ms: int) -> Move:
    """Its login is off; what is due next is the end of its sessions."""
    until_ms = lifecycle.sessions_end_ms(lease) or 0
    facts = replace(lease.facts, disabled_ms=lease.facts.disabled_ms or now_ms)
    return replace(_spared(lease, max(0, until_ms - now_ms)), stage=Stage.LOGIN_OFF, facts=facts)


def _ended(lease: Lease) -> Move:
    event = Event.ENDED
    return Move(
        number=lease.number, expect=lifecycle.expected(event), to=lifecycle.target(event), due_in_ms=0, epoch=lease.epoch
    )
