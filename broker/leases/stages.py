"""The stages of a revocation, for a batch of leases of one connection: each durable before the next, each safe to repeat.

login off -> sessions ended -> objects released -> dropped -> proved absent -> gone. Taking access away never waits for the audit
log; only `gone` waits until its entry is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog
from msgspec.structs import replace

from broker.audit.entry import NOBODY, Asked, AuditRequest, AuditResponse
from broker.engines.protocol import Engine, Outcome, User
from broker.errors import DatabaseUnavailable, EngineError, UserRemains, WorkContinues
from broker.leases import lifecycle, records
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import Lease, LeaseFacts, LeaseNumber, LeaseState, Stage
from broker.secret import random_below
from broker.store.words import Move, Step

HOLD_MS = 900_000
"""How long a claim of due work holds: longer than one stage may take, and most often than all of them together."""
_HOLD_AGAIN_MS = HOLD_MS // 3
"""How old a hold may be before the next stage begins; what is left of it is longer than a stage may take."""
_CONTINUE_S = 1
_ROWS_BETWEEN_YIELDS = 50
_JITTER_STEPS = 1_000

log = structlog.get_logger(__name__)

Verb = Callable[[Sequence[User]], Awaitable[Sequence[Outcome]]]


@dataclass(slots=True)
class Batch:
    """Leases that are being revoked together, and how far each has come."""

    leases: dict[LeaseNumber, Lease]
    users: dict[LeaseNumber, User]
    started_ms: int
    held_ms: dict[LeaseNumber, int] = field(default_factory=dict)
    """When a step of ours made the claim hold long of those that are `revoking` by it: for a while a stage is all that changes then."""
    disabled_ms: dict[LeaseNumber, int] = field(default_factory=dict)
    failures: dict[LeaseNumber, EngineError] = field(default_factory=dict)

    def going(self) -> list[LeaseNumber]:
        """Those that have not failed."""
        return [number for number in self.leases if number not in self.failures]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch."""

    gone: frozenset[LeaseNumber]
    failures: dict[LeaseNumber, EngineError]


async def advance(parts: Parts, engine: Engine, leases: Sequence[Lease]) -> Result:
    """Takes claimed leases (`revoking` or `stuck`, in the claimed epoch) through all stages that they still need.

    What fails is put back with its reason and a later due time. Raises `Unavailable` when the store or the audit log can't be
    written: the claims then run out, unless the caller gives them back, and the work falls due again.
    """
    now = parts.store.now_ms()
    batch = Batch(
        leases={lease.number: lease for lease in leases},
        users={lease.number: parts.markers.of(lease) for lease in leases},
        started_ms=now,
        held_ms={lease.number: now for lease in leases if lease.state in lifecycle.expected(Event.ENDED)},
    )
    request = records.new_request(
        "revoke", f"{records.MOUNT.point}leases", {"connection": leases[0].facts.connection_name, "leases": len(leases)}
    )
    asked = asyncio.ensure_future(parts.trail.record([records.request_entry(parts.scribe, batch.started_ms, request)]))
    asked.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    verbs: dict[Stage, Verb] = {
        Stage.LOGIN_OFF: engine.disable,
        Stage.SESSIONS_ENDED: engine.end_sessions,
        Stage.OBJECTS_RELEASED: engine.release,
        Stage.DROPPED: engine.drop,
        Stage.ABSENT: engine.prove_absent,
    }
    for stage, verb in verbs.items():
        await _stage(parts, batch, stage, verb)
    await _put_back(parts, batch)
    gone = await _finish(parts, batch, request)
    return Result(gone, batch.failures)


async def _stage(parts: Parts, batch: Batch, stage: Stage, verb: Verb) -> None:
    # A lease that failed before starts again at the first stage: its login may have been turned on since.
    todo = [number for number in batch.going() if batch.leases[number].attempts or batch.leases[number].stage < stage]
    if not todo:
        return
    try:
        outcomes = await verb([batch.users[number] for number in todo])
    except EngineError as error:
        outcomes = [Outcome(number, error) for number in todo]
    now = parts.store.now_ms()
    done = []
    for outcome in outcomes:
        if outcome.error is not None:
            batch.failures[outcome.number] = outcome.error
            parts.metrics.revocation_failures.labels(
                batch.leases[outcome.number].facts.connection_name, stage.name.lower()
            ).inc()
            continue
        done.append(outcome.number)
        if stage is Stage.LOGIN_OFF:
            batch.disabled_ms[outcome.number] = now
    if stage is Stage.ABSENT or not done:
        return
    await _note(parts, batch, done, Event.ADVANCED, stage)


async def _note(
    parts: Parts, batch: Batch, numbers: Sequence[LeaseNumber], event: Event, stage: Stage
) -> frozenset[LeaseNumber]:
    """Makes a stage durable; drops leases that are no longer ours from the batch, and answers the others."""
    now = parts.store.now_ms()
    alike: dict[tuple[int, int | None], list[LeaseNumber]] = {}
    for number in numbers:
        if event is Event.FINISHED:
            due_in_ms: int | None = parts.settings.tombstones * 1_000
        else:
            held_ms = batch.held_ms.get(number)
            due_in_ms = None if held_ms is not None and now - held_ms < _HOLD_AGAIN_MS else HOLD_MS
        alike.setdefault((batch.leases[number].epoch, due_in_ms), []).append(number)
    steps = [
        Step(
            numbers=same,
            epoch=epoch,
            expect=lifecycle.expected(event),
            to=lifecycle.target(event),
            stage=stage,
            due_in_ms=due_in_ms,
        )
        for (epoch, due_in_ms), same in alike.items()
    ]
    noted = frozenset[LeaseNumber]().union(*await asyncio.gather(*(parts.store.step(step) for step in steps)))
    for (_, due_in_ms), same in alike.items():
        if due_in_ms is not None:
            batch.held_ms |= dict.fromkeys(same, now)
    for number in numbers:
        if number not in noted:
            # Another process has taken the claim over, or an operator forced the lease off the books.
            del batch.leases[number]
    return noted


async def _put_back(parts: Parts, batch: Batch) -> None:
    if not batch.failures:
        return
    now = parts.store.now_ms()
    moves = [
        _delayed(batch, batch.leases[number], error, now) for number, error in batch.failures.items() if number in batch.leases
    ]
    moved = await parts.store.move(moves)
    _warn_of_stuck(batch, [move for move in moves if move.number in moved and move.to is LeaseState.STUCK])


def _warn_of_stuck(batch: Batch, moves: Sequence[Move]) -> None:
    """One line for those that were not stuck before; `sys/leases` lists each with its reason."""
    fresh = [facts for move in moves if batch.leases[move.number].state is not LeaseState.STUCK and (facts := move.facts)]
    if fresh:
        first = fresh[0]
        log.warning(
            "leases are stuck",
            connection=first.connection_name,
            leases=len(fresh),
            path=first.path,
            username=first.username,
            reason=first.failure,
            remedy="; ".join(first.remedy),
        )


def _delayed(batch: Batch, lease: Lease, error: EngineError, now_ms: int) -> Move:
    facts = replace(
        _with_times(batch, lease),
        failure=str(error),
        failing_since_ms=lease.facts.failing_since_ms or now_ms,
        remedy=error.remedy if isinstance(error, UserRemains) else (),
    )
    # A database that is away uses up no attempts: nothing was learned about the lease. Nor does work that came further.
    if isinstance(error, DatabaseUnavailable | WorkContinues):
        stuck = lease.state is LeaseState.STUCK
        delay_s = error.retry_after_s if isinstance(error, DatabaseUnavailable) else _CONTINUE_S
        event, attempts, delay_ms = Event.STUCK if stuck else Event.DELAYED, lease.attempts, delay_s * 1_000
    else:
        tried = lifecycle.retry(lease.attempts, random_below(_JITTER_STEPS) / _JITTER_STEPS)
        event, attempts, delay_ms = tried.event, tried.attempts, tried.delay_ms
    return Move(
        number=lease.number,
        expect=lifecycle.expected(event),
        to=lifecycle.target(event),
        due_in_ms=delay_ms,
        stage=_reached(batch, lease),
        attempts=attempts,
        epoch=lease.epoch,
        facts=facts,
    )


def _reached(batch: Batch, lease: Lease) -> Stage:
    return max(lease.stage, Stage.LOGIN_OFF) if lease.number in batch.disabled_ms else lease.stage


def _with_times(batch: Batch, lease: Lease) -> LeaseFacts:
    facts = lease.facts
    return replace(
        facts,
        password=None,
        reason=facts.reason or reason_of(facts, batch.started_ms),
        revoke_started_ms=_began(lease, batch.started_ms),
        disabled_ms=facts.disabled_ms or batch.disabled_ms.get(lease.number, 0),
    )


def from_the_start(lease: Lease) -> Move:
    """What `lease` has come through, of a revocation or as the beginning of its grace, is done once more, now."""
    return Move(
        number=lease.number,
        expect=(lease.state,),
        to=lease.state,
        due_in_ms=0,
        stage=Stage.NONE,
        attempts=lease.attempts,
        epoch=lease.epoch,
    )


def begun_anew(facts: LeaseFacts, reason: str, now_ms: int) -> LeaseFacts:
    """The facts of a lease whose revocation begins now; what an earlier one left in them goes."""
    return replace(
        facts,
        password=None,
        reason=reason,
        revoke_started_ms=now_ms,
        disabled_ms=0,
        dropped_ms=0,
        failure="",
        failing_since_ms=0,
        remedy=(),
    )


def reason_of(facts: LeaseFacts, now_ms: int) -> str:
    """Why a lease ends that fell due without a word: its time was over, or it was ended before."""
    return "expired" if facts.expires_ms and facts.expires_ms <= now_ms else "revoked"


def _began(lease: Lease, now_ms: int) -> int:
    """Since when it should have been gone: as it says, else since it fell due, which the end of its prefix or token made now."""
    return lease.facts.revoke_started_ms or min(lease.due_ms, now_ms)


async def _finish(parts: Parts, batch: Batch, request: AuditRequest) -> frozenset[LeaseNumber]:
    numbers = batch.going()
    if not numbers:
        return frozenset()
    now = parts.store.now_ms()
    entries = []
    asked = parts.scribe.asked(NOBODY, replace(request, data=None))
    for position, number in enumerate(numbers):
        entries.append(_gone_entry(parts, batch, asked, number, now))
        if position % _ROWS_BETWEEN_YIELDS == _ROWS_BETWEEN_YIELDS - 1:
            await asyncio.sleep(0)
    await parts.trail.record(entries)
    return await _note(parts, batch, numbers, Event.FINISHED, Stage.ABSENT)


def _gone_entry(parts: Parts, batch: Batch, asked: Asked, number: LeaseNumber, now_ms: int) -> bytes:
    lease = batch.leases[number]
    facts, began = lease.facts, _began(lease, batch.started_ms)
    to_disabled = max(0, (facts.disabled_ms or batch.disabled_ms.get(number, now_ms)) - began)
    to_dropped = max(0, now_ms - began)
    parts.metrics.time_to_disabled.observe(to_disabled / 1_000)
    parts.metrics.time_to_dropped.observe(to_dropped / 1_000)
    data = {
        "username": facts.username,
        "reason": facts.reason or reason_of(facts, batch.started_ms),
        "time_to_disabled_ms": to_disabled,
        "time_to_dropped_ms": to_dropped,
    }
    response = AuditResponse(mount=records.MOUNT, lease_id=parts.ids.lease_id(facts.path, number), data=data)
    return parts.scribe.response(now_ms, asked, response)
