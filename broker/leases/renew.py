"""Renew: a lease's time is counted anew from now, within its maximum and the life of its token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from msgspec.structs import replace

from broker.engines.protocol import Extension
from broker.errors import InvalidRequest
from broker.leases import lifecycle
from broker.leases.issue import Issuer
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.ttl import jittered, resolve
from broker.leases.turns import Turns
from broker.model import NO_TOKEN, Lease, LeaseNumber, LeaseState
from broker.store.words import Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """A renewed lease."""

    lease_id: str
    ttl_s: int
    renewable: bool
    warnings: tuple[str, ...] = ()


class Renewer:
    """Renews leases."""

    def __init__(self, parts: Parts, issuer: Issuer) -> None:
        self._parts = parts
        self._issuer = issuer
        self._turns = Turns()

    async def renew(self, lease_id: str, increment_s: int) -> Renewed:
        """The lease lives `increment_s` seconds from now (0: the role's default), as far as its caps allow.

        At its maximum it answers the shrinking rest with a warning, not an error. The database's own expiry moves before the
        lease's does; when that fails the lease keeps its time. Raises `InvalidRequest` in Vault's words, `EngineError`.
        """
        number = self._parts.ids.lease_number(lease_id)
        if number is None:
            raise InvalidRequest("lease not found")
        async with self._alone(number):
            return await self._renew(await self._renewable(number), lease_id, increment_s)

    @asynccontextmanager
    async def _alone(self, number: LeaseNumber) -> AsyncIterator[None]:
        """Whoever else sets the expiry in the database would undo the one that comes first: others' renewals, logins turned on anew."""
        async with self._turns.take(str(number).encode()):
            await self._parts.holds.no_login(number)
            with self._parts.holds.renewal(number):
                yield

    async def _renew(self, lease: Lease, lease_id: str, increment_s: int) -> Renewed:
        parts = self._parts
        role = parts.catalog.role(lease.facts.role)
        if role is None:
            raise InvalidRequest(f'error during renew: could not find role with name "{lease.facts.role}"')
        now = parts.store.now_ms()
        age_s = (now - lease.facts.issued_ms + 999) // 1_000
        token_expires_ms = await self._token_expires_ms(lease)
        ttl = resolve(increment_s, self._issuer.bounds(role, token_expires_ms=token_expires_ms, age_s=age_s))
        left_s = (lifecycle.ends_ms(lease) - now) // 1_000
        if ttl.seconds <= 0:
            return Renewed(
                lease_id=lease_id, ttl_s=left_s, renewable=True, warnings=(*ttl.warnings, "past the max TTL, not extended")
            )
        ttl = jittered(ttl, role.ttl_jitter, parts.chance(), left_s=left_s)
        engine = await parts.catalog.engine(lease.connection)
        extension = Extension(user=parts.markers.of(lease), lifetime_ms=ttl.seconds * 1_000)
        for outcome in await engine.extend([extension]):
            if outcome.error is not None:
                raise outcome.error
        facts = replace(lease.facts, renewed_ms=now, expires_ms=now + ttl.seconds * 1_000, capped_by=ttl.capped_by)
        move = Move(
            number=lease.number,
            expect=lifecycle.expected(Event.RENEWED),
            to=lifecycle.target(Event.RENEWED),
            due_in_ms=ttl.seconds * 1_000,
            epoch=lease.epoch,
            facts=facts,
            token=lease.token if lease.token != NO_TOKEN else None,
        )
        if lease.number not in await parts.store.move([move]):
            raise InvalidRequest("lease expired")
        return Renewed(lease_id=lease_id, ttl_s=ttl.seconds, renewable=True, warnings=ttl.warnings)

    async def _renewable(self, number: LeaseNumber) -> Lease:
        lease = await self._parts.store.lease(number)
        if lease is None or not lifecycle.live(lease.state):
            raise InvalidRequest("lease not found")
        if lease.state is LeaseState.STUCK:
            raise InvalidRequest("lease is expired and has failed previous revocation attempts")
        if lease.state is not LeaseState.ACTIVE or lifecycle.ends_ms(lease) <= self._parts.store.now_ms():
            raise InvalidRequest("lease expired")
        return lease

    async def _token_expires_ms(self, lease: Lease) -> int | None:
        token = await self._parts.store.token(lease.token)
        if token is None:
            raise InvalidRequest("lease expired")
        return token.expires_ms
