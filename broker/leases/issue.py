"""Issue: a lease is asked for, and its user made or taken from those prepared.

On demand: the intent (`reserved`) and the request entry are durable, then the user is made, then `active` and the response entry are
durable, then the caller hears the password. From the prepared: see `broker.leases.pump`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec.structs import replace

from broker.catalog.roles import Role
from broker.deadline import Deadlines
from broker.engines.protocol import Engine, Extension, NewUser, Password
from broker.errors import (
    AuditUnavailable,
    DatabaseUnavailable,
    InvalidRequest,
    LimitExceeded,
    PermissionDenied,
    StoreUnavailable,
    Unavailable,
    UserMissing,
    UserNameTaken,
)
from broker.leases import lifecycle
from broker.leases.again import give_again, worth_giving
from broker.leases.ask import Ask, Issued, Plan, RequestRecord, ask_key, beside_record, on_record
from broker.leases.draft import Drafts
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.prepare import Pools
from broker.leases.pump import HandoutItem, Pump
from broker.leases.ttl import Bounds, Ttl, jittered, resolve
from broker.leases.turns import Turns
from broker.model import Lease, LeaseFacts, LeaseNumber
from broker.secret import Secret
from broker.store.words import Handout, Limits, Move, Refusal, Reservation

__all__ = ["Ask", "Issued", "Issuer"]

_NAME_ATTEMPTS = 4
_HANDOUT_ATTEMPTS = 4
_MISSING_MOST = 2
"""One missing user was dropped by somebody; two in a row tell of a database that was set back and lost more."""
_RESERVED_GRACE_MS = 60_000
"""How long past its own time limit an intent is left alone before it counts as abandoned."""


class Issuer:
    """Issues leases. One serves all connections; a slow one delays nobody else."""

    def __init__(self, parts: Parts, pools: Pools, pump: Pump) -> None:
        self._parts = parts
        self._pools = pools
        self._pump = pump
        self._deadlines = Deadlines()
        self._turns = Turns()
        self._drafts = Drafts()
        self._count_issued = parts.metrics.leases_issued.count
        self._count_hit = parts.metrics.prepared_hits.count

    async def issue(self, ask: Ask) -> Issued:
        """A new lease, or the same one again where the caller may ask twice.

        Both audit entries are durable when this returns; when it raises, the request entry is, unless it raises `AuditUnavailable`.
        Raises `InvalidRequest`, `PermissionDenied` (the token ended meanwhile), `LimitExceeded`, `EngineError`, `Unavailable`.
        A cancelled or timed-out issue leaves an intent behind that is removed in the background.
        """
        parts, request = self._parts, RequestRecord(ask.request_entry)
        parts.issuing += 1
        try:
            return await self._in_time(ask, self._plan(ask, request))
        except asyncio.CancelledError:
            with suppress(AuditUnavailable):
                await on_record(parts.trail, [request])
            raise
        except Exception:
            # Whoever refused may have done so before anything was to be recorded; what is on record already costs nothing here.
            await on_record(parts.trail, [request])
            raise
        finally:
            parts.issuing -= 1

    async def _in_time(self, ask: Ask, plan: Plan) -> Issued:
        limit_s = self._parts.settings.issue_timeout_s
        try:
            with self._deadlines.within(limit_s):
                if plan.ask_key is None:
                    return await self._fresh(ask, plan)
                return await self._same_or_fresh(ask, plan, plan.ask_key)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"connection {plan.connection.name}: no user within {limit_s:g} s; what was begun is removed", retry_after_s=5
            ) from None

    def _plan(self, ask: Ask, request: RequestRecord) -> Plan:
        catalog, settings = self._parts.catalog, self._parts.settings
        role = catalog.role(ask.role)
        if role is None:
            raise InvalidRequest(f"unknown role: {ask.role}")
        connection = catalog.connection(role.db_name)
        if not connection.allows(role.name):
            raise InvalidRequest(f'"{role.name}" is not an allowed role')
        ttl = resolve(0, self.bounds(role, token_expires_ms=ask.owner.expires_ms))
        if ttl.seconds <= 0:
            raise PermissionDenied
        limits = Limits(per_role=role.max_leases or settings.max_per_role, per_token=settings.max_per_token)
        return Plan(role, connection, ttl, limits, ask_key(ask, role), request)

    def bounds(self, role: Role, *, token_expires_ms: int | None, age_s: int = 0) -> Bounds:
        """What limits a lease of `role` that has lived `age_s` seconds."""
        settings = self._parts.settings
        maximum = min(role.max_ttl_s or settings.max_ttl, settings.max_ttl)
        left = None if token_expires_ms is None else (token_expires_ms - self._parts.store.now_ms()) // 1_000
        return Bounds(default_s=role.default_ttl_s or settings.default_ttl, max_s=maximum, age_s=age_s, token_left_s=left)

    # asked before -----------------------------------------------------------------------------------------------------

    async def _same_or_fresh(self, ask: Ask, plan: Plan, key: bytes) -> Issued:
        async with self._turns.take(key):
            lease = await self._parts.store.asked(key)
            if lease is None:
                return await self._fresh(ask, plan)
            if worth_giving(self._parts, ask, plan, lease):
                return await give_again(self._parts, ask, plan, lease)
            await self._parts.store.free_ask(key)
            return await self._fresh(ask, plan)

    # prepared ---------------------------------------------------------------------------------------------------------

    async def _fresh(self, ask: Ask, plan: Plan) -> Issued:
        if plan.role.ttl_jitter:
            plan = replace(plan, ttl=jittered(plan.ttl, plan.role.ttl_jitter, self._parts.chance()))
        if plan.role.prepared_users:
            issued = await self._from_the_prepared(ask, plan)
            if issued is not None:
                self._count_hit(plan.role.name)
                return issued
            self._parts.metrics.prepared_misses.labels(plan.role.name).inc()
        return await self._on_demand(ask, plan)

    async def _from_the_prepared(self, ask: Ask, plan: Plan) -> Issued | None:
        """A lease of a user that was prepared; None when there is none ready, or others were faster, or the database lost them."""
        missing = 0
        for _ in range(_HANDOUT_ATTEMPTS):
            lease = await self._pools.take(plan.role, plan.connection)
            if lease is None:
                return None
            try:
                issued = await self._hand_out(ask, plan, lease)
            except UserMissing:
                missing += 1
                if missing == _MISSING_MOST:
                    await self._pools.discard(plan.role)
                    return None
            else:
                if issued is not None:
                    return issued
        return None

    async def _hand_out(self, ask: Ask, plan: Plan, lease: Lease) -> Issued | None:
        password = lease.facts.password
        if password is None:
            raise StoreUnavailable(f"prepared user {lease.number} has no password")
        facts = self._facts(ask, plan, lease.facts.username, identity=lease.facts.identity, keep=password)
        issued = self._issued(lease.number, facts, plan.ttl, password)
        item = HandoutItem(
            handout=Handout(
                number=lease.number,
                token=ask.owner.number,
                facts=facts,
                due_in_ms=plan.ttl.seconds * 1_000,
                limits=plan.limits,
                ask_key=plan.ask_key,
                asker=ask.token,
            ),
            extension=Extension(user=self._parts.markers.user(lease.number, facts), lifetime_ms=plan.ttl.seconds * 1_000),
            request=plan.request,
            respond=lambda: ask.response_entry(issued),
        )
        try:
            refusal = await self._pump.hand_out(plan.connection, item)
            if refusal is Refusal.NOT_PREPARED:
                return None
            _raise_for(refusal, plan)
        except BaseException:
            await self._pools.give_back(plan.role, lease)
            raise
        self._count_issued(plan.role.name)
        return issued

    # on demand --------------------------------------------------------------------------------------------------------

    async def _on_demand(self, ask: Ask, plan: Plan) -> Issued:
        engine = await self._parts.catalog.engine_for(plan.connection)
        # A database that is away or has enough to do gets no intents, each of which would have to be revoked there.
        engine.refuse_if_open()
        with engine.place():
            return await self._first_free_name(ask, plan, engine)

    async def _first_free_name(self, ask: Ask, plan: Plan, engine: Engine) -> Issued:
        password = await engine.new_password()
        username = engine.user_name(ask.display_name, plan.role.name)
        for _ in range(_NAME_ATTEMPTS):
            number, facts = await self._reserve(ask, plan, self._facts(ask, plan, username, keep=password.text))
            try:
                with self._parts.holds.login([number]):
                    return await self._make(ask, plan, engine, password, number, facts)
            except UserNameTaken:
                username = engine.user_name(ask.display_name, plan.role.name)
        raise UserNameTaken(
            f"connection {plan.connection.name}: {_NAME_ATTEMPTS} generated names were all taken; check username_template"
        )

    async def _reserve(self, ask: Ask, plan: Plan, facts: LeaseFacts) -> tuple[LeaseNumber, LeaseFacts]:
        """Barrier 1: the intent and the request entry, both durable."""
        parts = self._parts
        number = LeaseNumber(parts.numbers.next())
        reservation = Reservation(
            number=number,
            connection=plan.connection.number,
            token=ask.owner.number,
            facts=facts,
            due_in_ms=int(parts.settings.issue_timeout_s * 1_000) + _RESERVED_GRACE_MS,
            limits=plan.limits,
            ask_key=plan.ask_key,
            asker=ask.token,
        )
        reserved, unrecorded = await beside_record(parts.store.reserve([reservation]), on_record(parts.trail, [plan.request]))
        _raise_for(reserved[0], plan)
        if unrecorded is not None:
            await self._give_up(number, facts)
            raise unrecorded
        return number, facts

    async def _make(
        self, ask: Ask, plan: Plan, engine: Engine, password: Password, number: LeaseNumber, facts: LeaseFacts
    ) -> Issued:
        """The statements, then barrier 2: `active` and the response entry, both durable."""
        parts = self._parts
        user = replace(parts.markers.user(number, facts), terms=plan.role.terms)
        lifetime_ms = plan.ttl.seconds * 1_000
        try:
            identity = await engine.create(NewUser(user=user, password=password, lifetime_ms=lifetime_ms))
            facts = replace(facts, identity=identity)
            issued = self._issued(number, facts, plan.ttl, password.text)
            activation = Move(
                number=number,
                expect=lifecycle.expected(Event.ISSUED),
                to=lifecycle.target(Event.ISSUED),
                due_in_ms=lifetime_ms,
                facts=facts,
                # Who asks may have been ended meanwhile, or, without its children, whose the lease is.
                token=ask.token,
            )
            recording = asyncio.ensure_future(parts.trail.record([ask.response_entry(issued)]))
            moved, unrecorded = await beside_record(parts.store.move([activation]), recording)
            if unrecorded is not None:
                raise unrecorded  # noqa: TRY301 - undone below like every other failure
            if number not in moved:
                raise PermissionDenied  # noqa: TRY301 - the same
        except BaseException:
            # Also when cancelled: the intent is durable, so whatever the database did is undone from it.
            await asyncio.shield(self._give_up(number, facts))
            raise
        self._count_issued(plan.role.name)
        return issued

    async def _give_up(self, number: LeaseNumber, facts: LeaseFacts) -> None:
        """Ends a lease that its caller won't hear of; what can't be written now falls due by itself."""
        move = Move(
            number=number,
            expect=lifecycle.expected(Event.ENDED),
            to=lifecycle.target(Event.ENDED),
            due_in_ms=0,
            facts=replace(facts, password=None, reason="not answered", revoke_started_ms=self._parts.store.now_ms()),
        )
        try:
            await self._parts.store.move([move])
        except Unavailable:
            return
        self._parts.wake_expiry()

    # either way -------------------------------------------------------------------------------------------------------

    def _facts(self, ask: Ask, plan: Plan, username: str, *, keep: Secret, identity: str = "") -> LeaseFacts:
        now = self._parts.store.now_ms()
        return replace(
            self._drafts.of(plan.role, plan.connection),
            username=username,
            identity=identity,
            display_name=ask.display_name,
            accessor=ask.owner.facts.accessor,
            password=None if plan.ask_key is None else keep,
            issued_ms=now,
            expires_ms=now + plan.ttl.seconds * 1_000,
            capped_by=plan.ttl.capped_by,
        )

    def _issued(self, number: LeaseNumber, facts: LeaseFacts, ttl: Ttl, password: Secret) -> Issued:
        return Issued(
            lease_id=self._parts.ids.lease_id(facts.path, number),
            ttl_s=ttl.seconds,
            username=facts.username,
            password=password,
            warnings=ttl.warnings,
            capped_by=ttl.capped_by,
        )


def _raise_for(refusal: Refusal | None, plan: Plan) -> None:
    if refusal is None:
        return
    if refusal is Refusal.TOKEN_ENDED:
        raise PermissionDenied
    most = {
        Refusal.ROLE_LIMIT: (
            "leases per role",
            f"role {plan.role.name} has its {plan.limits.per_role} live leases (max_leases)",
        ),
        Refusal.TOKEN_LIMIT: ("leases per token", f"its token has its {plan.limits.per_token} live leases (max_per_token)"),
    }
    if refusal in most:
        limit, told = most[refusal]
        raise LimitExceeded(f"lease count quota exceeded: {told}", limit=limit, retry_after_s=10)
    raise Unavailable("the same request is being answered already", retry_after_s=1)
