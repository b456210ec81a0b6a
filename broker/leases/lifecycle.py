r"""The life of a lease as a table: from which states an event may happen, and where it leads. Pure; the store enforces the same.

    reserved -> active -> (grace ->) revoking -> gone
        \___________________________/^    |  ^
    preparing -> prepared ___________/    stuck

Every verb of this room builds its store moves from here, so no state is named twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from broker.errors import StateConflict
from broker.model import Lease, LeaseState

_RETRY_FIRST_MS = 1_000
_RETRY_CAP_MS = 300_000
QUICK_ATTEMPTS = 8
"""Doubling from 1 s these last about four minutes; then a lease is `stuck`, which people are told of."""
STUCK_RETRY_MS = 900_000


class Event(StrEnum):
    """What can happen to a lease."""

    ISSUED = "issued"
    """Its user exists and the answer is durable in the audit log."""
    PREPARED = "prepared"
    HANDED_OUT = "handed out"
    RENEWED = "renewed"
    ENDED = "ended"
    """Its time is over, or somebody or something ended it."""
    SPARED = "given a grace"
    """Its time is over, and its role lets the sessions that are open go on for a while."""
    UNWANTED = "not wanted any longer"
    """Its role wants other prepared users; one that was handed out meanwhile is somebody's and stays."""
    ADVANCED = "advanced"
    """One more stage of its revocation is durable."""
    DELAYED = "delayed"
    """A stage failed and will be tried again soon."""
    STUCK = "stuck"
    """The quick attempts are used up; tried at a low rate from now on."""
    FORGOTTEN = "forgotten"
    """An operator forced it off the books; its user is no longer looked after."""
    SEEN_AGAIN = "seen again"
    """Its user is there though it was proved absent: a failover or a restored database brought it back."""
    FINISHED = "finished"
    """Its user is proved absent and the audit log has it."""


_ENDING = frozenset({LeaseState.REVOKING, LeaseState.STUCK})

_TABLE: dict[Event, tuple[frozenset[LeaseState], LeaseState]] = {
    Event.ISSUED: (frozenset({LeaseState.RESERVED}), LeaseState.ACTIVE),
    Event.PREPARED: (frozenset({LeaseState.PREPARING}), LeaseState.PREPARED),
    Event.HANDED_OUT: (frozenset({LeaseState.PREPARED}), LeaseState.ACTIVE),
    Event.RENEWED: (frozenset({LeaseState.ACTIVE}), LeaseState.ACTIVE),
    Event.ENDED: (
        frozenset({LeaseState.RESERVED, LeaseState.PREPARING, LeaseState.PREPARED, LeaseState.ACTIVE, LeaseState.GRACE}),
        LeaseState.REVOKING,
    ),
    Event.SPARED: (frozenset({LeaseState.ACTIVE, LeaseState.GRACE}), LeaseState.GRACE),
    Event.UNWANTED: (frozenset({LeaseState.PREPARED}), LeaseState.REVOKING),
    Event.ADVANCED: (_ENDING, LeaseState.REVOKING),
    Event.DELAYED: (_ENDING, LeaseState.REVOKING),
    Event.STUCK: (_ENDING, LeaseState.STUCK),
    Event.FORGOTTEN: (frozenset({LeaseState.ACTIVE, LeaseState.GRACE}) | _ENDING, LeaseState.GONE),
    Event.SEEN_AGAIN: (frozenset({LeaseState.GONE}), LeaseState.REVOKING),
    Event.FINISHED: (_ENDING, LeaseState.GONE),
}


def expected(event: Event) -> Collection[LeaseState]:
    """The states in which `event` may happen."""
    return _TABLE[event][0]


def target(event: Event) -> LeaseState:
    """The state that `event` leads to."""
    return _TABLE[event][1]


def after(state: LeaseState, event: Event) -> LeaseState:
    """The state after `event` in `state`. Raises `StateConflict` when it can't happen there."""
    if state not in expected(event):
        raise StateConflict(f"a lease that is {state.name.lower()} can't be {event}")
    return target(event)


def live(state: LeaseState) -> bool:
    """Whether a client may still look such a lease up: all but the pool's and the gone ones."""
    return state in _LIVE


_LIVE = frozenset({LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.GRACE, LeaseState.REVOKING, LeaseState.STUCK})


def ends_ms(lease: Lease) -> int:
    """When an active lease ends by itself.

    Its due time says so, or earlier than its facts where its token ends first; but a claim of due work pushes that on for a while.
    """
    return min(lease.due_ms, lease.facts.expires_ms)


def sessions_end_ms(lease: Lease) -> int | None:
    """Until when the sessions of an active lease may go on, or of one in its grace; None for one that somebody ended.

    It counts from the end of the lease, whenever the broker came to it: a grace may be over before its time was noticed.
    """
    if lease.state not in expected(Event.SPARED):
        return None
    ended_ms = ends_ms(lease) if lease.state is LeaseState.ACTIVE else lease.facts.revoke_started_ms
    return ended_ms + lease.facts.session_grace_s * 1_000


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed revocation is tried again, and in which state it waits."""

    event: Event
    attempts: int
    delay_ms: int


def retry(attempts: int, jitter: float) -> Retry:
    """The next try after `attempts` failures: exponential from 1 s to 5 min, then every 15 min as `stuck`.

    `jitter` in [0, 1) spreads the delay over +-25 %, so that leases that failed together don't come back together.
    """
    used = attempts + 1
    quick = used < QUICK_ATTEMPTS
    base = min(_RETRY_CAP_MS, _RETRY_FIRST_MS << min(attempts, 20)) if quick else STUCK_RETRY_MS
    return Retry(Event.DELAYED if quick else Event.STUCK, used, int(base * (0.75 + jitter / 2)))
