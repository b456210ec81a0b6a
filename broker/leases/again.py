"""Again: the same question gets the lease that answered it before, while that is worth giving."""

from __future__ import annotations

from broker.engines.protocol import Engine
from broker.errors import Unavailable
from broker.leases import lifecycle, logins
from broker.leases.ask import Ask, Issued, Plan, on_record
from broker.leases.parts import Parts
from broker.leases.recipe import recipe
from broker.leases.ttl import Ttl, jittered
from broker.model import Lease, LeaseState


def worth_giving(parts: Parts, ask: Ask, plan: Plan, lease: Lease) -> bool:
    """A repeated idempotency key gets its lease to its end.

    Re-issue wants half of the time to live still ahead (of the shortest that the role would give it now), and the user that the role would
    make today, where it would make it.
    """
    left_ms = lifecycle.ends_ms(lease) - parts.store.now_ms()
    if ask.idempotency_key:
        return lease.state is LeaseState.RESERVED or left_ms > 0
    return (
        lease.state is LeaseState.ACTIVE
        and lease.facts.password is not None
        and left_ms >= jittered(plan.ttl, plan.role.ttl_jitter, 1).seconds * 500
        and lease.connection == plan.connection.number
        and lease.facts.recipe == recipe(plan.role)
    )


async def give_again(parts: Parts, ask: Ask, plan: Plan, lease: Lease) -> Issued:
    """The lease's answer once more, both entries durable. Raises `Unavailable` while the first one is not given yet."""
    if lease.state is not LeaseState.ACTIVE or lease.facts.password is None:
        raise Unavailable("the first request with this Idempotency-Key is still being answered", retry_after_s=1)
    left_s = max(0, (lifecycle.ends_ms(lease) - parts.store.now_ms()) // 1_000)
    ttl = Ttl(left_s, lease.facts.capped_by)
    issued = Issued(
        lease_id=parts.ids.lease_id(lease.facts.path, lease.number),
        ttl_s=ttl.seconds,
        username=lease.facts.username,
        password=lease.facts.password,
        warnings=ttl.warnings,
        capped_by=ttl.capped_by,
    )
    await on_record(parts.trail, [plan.request])
    # The first answer's login may have been lost with the process that gave it.
    engine = await parts.catalog.engine(lease.connection)
    if engine.traits.prepares:
        await _turn_on_again(parts, engine, lease)
    await parts.trail.record([ask.response_entry(issued)])
    return issued


async def _turn_on_again(parts: Parts, engine: Engine, lease: Lease) -> None:
    outcomes = await logins.turn_on(parts, engine, [lease.number])
    if not outcomes:
        raise Unavailable("the lease of the first request with this key was ended meanwhile: ask again", retry_after_s=1)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
