"""Logins: what the database may have lost of an active lease is given to its user once more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from broker.engines.protocol import Engine, Extension, Outcome
from broker.errors import EngineError
from broker.leases import lifecycle, stages
from broker.leases.parts import Parts
from broker.model import Lease, LeaseNumber, LeaseState


async def turn_on(parts: Parts, engine: Engine, numbers: Collection[LeaseNumber]) -> Sequence[Outcome]:
    """Lets the users of those leases that are active log in until they end; answers how that went for them.

    Raises `DatabaseUnavailable` where it does not answer at all; some may be turned on then.
    """
    outcomes: list[Outcome] = []
    async with _held(parts, numbers) as active:
        for batch in engine.traits.batches(active):
            outcomes += await engine.enable([extension(parts, lease) for lease in batch])
        # A revocation that had looked already who is held may have turned a login off, and ours came after that.
        done = [outcome.number for outcome in outcomes if outcome.error is None]
        ended = [lease for lease in await _read(parts, done) if lease.state is not LeaseState.ACTIVE]
        for batch in engine.traits.batches(ended):
            await _turn_off(parts, engine, batch)
    gone = {lease.number for lease in ended}
    return [outcome for outcome in outcomes if outcome.number not in gone]


async def _turn_off(parts: Parts, engine: Engine, leases: Sequence[Lease]) -> None:
    """Takes the logins of leases away that were ended meanwhile.

    A revocation drops the user whatever comes of that; a grace would let it be for its whole time, so it begins anew.
    """
    in_grace = {lease.number: lease for lease in leases if lease.state is LeaseState.GRACE}
    users = [replace(parts.markers.of(lease), spared=lease.number in in_grace) for lease in leases]
    try:
        outcomes = await engine.disable(users)
    except EngineError as error:
        outcomes = [Outcome(user.number, error) for user in users]
    again = [in_grace[outcome.number] for outcome in outcomes if outcome.error is not None and outcome.number in in_grace]
    if again:
        await parts.store.move([stages.from_the_start(lease) for lease in again])
        parts.wake_expiry()


async def prolong(parts: Parts, engine: Engine, numbers: Collection[LeaseNumber]) -> Sequence[Outcome]:
    """Moves the expiries of the users of those leases that are active to where these end; answers how that went for them.

    Raises `DatabaseUnavailable` where it does not answer at all.
    """
    outcomes: list[Outcome] = []
    async with _held(parts, numbers) as active:
        for batch in engine.traits.batches(active):
            outcomes += await engine.extend([extension(parts, lease) for lease in batch])
    return outcomes


def extension(parts: Parts, lease: Lease) -> Extension:
    """The login of a lease's user for as long as the lease lasts."""
    left_ms = max(0, lifecycle.ends_ms(lease) - parts.store.now_ms())
    return Extension(user=parts.markers.of(lease), lifetime_ms=left_ms)


@asynccontextmanager
async def _held(parts: Parts, numbers: Collection[LeaseNumber]) -> AsyncIterator[Sequence[Lease]]:
    """Those leases that are active, read when nobody moves their ends any more and revocation leaves them alone."""
    await parts.holds.no_renewal(numbers)
    with parts.holds.login(numbers):
        yield [lease for lease in await _read(parts, numbers) if lease.state is LeaseState.ACTIVE]


async def _read(parts: Parts, numbers: Collection[LeaseNumber]) -> Sequence[Lease]:
    return await parts.store.leases(numbers) if numbers else ()
