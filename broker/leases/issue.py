"""Issue: a lease is asked for, and its user made or taken from those prepared.

On demand: the intent (`reserved`) and the request entry are durable, then the user is made, then `active` and the response entry are
durable, then the caller hears the password. From the prepared: see `broker.leases.pump`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.deadline import Deadlines
from broker.engines.protocol import Engine, Extension, NewUser, Password
from broker.errors import (
    BrokerError,
    DatabaseUnavailable,
    InvalidRequest,
    LimitExceeded,
    PermissionDenied,
    StoreUnavailable,
    Unavailable,
    UserNameTaken,
)
from broker.leases import lifecycle
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.leases.prepare import Pools
from broker.leases.pump import HandoutItem, Pump
from broker.leases.recipe import recipe
from broker.leases.ttl import Bounds, Ttl, resolve
from broker.leases.turns import Turns
from broker.model import Accessor, Lease, LeaseFacts, LeaseId, LeaseNumber, LeaseState, Terms, TokenNumber
from broker.secret import Secret
from broker.store.protocol import Handout, Limits, Move, Refusal, Reservation

_NAME_ATTEMPTS = 4
_HANDOUT_ATTEMPTS = 4
_RESERVED_GRACE_MS = 60_000
"""How long past its own time limit an intent is left alone before it counts as abandoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A lease as its caller hears of it, once."""

    lease_id: LeaseId
    ttl_s: int
    username: str
    password: Secret
    warnings: tuple[str, ...] = ()
    capped_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a caller asks for, and the audit entries that surround the answer."""

    role: str
    mount: str
    token: TokenNumber
    accessor: Accessor
    display_name: str
    token_expires_ms: int | None
    idempotency_key: str
    request_entry: bytes
    """Durable before any statement reaches a database."""
    response_entry: Callable[[Issued], bytes]
    """Durable before `Issuer.issue` returns."""


@dataclass(frozen=True, slots=True)
class _Plan:
    role: Role
    connection: Connection
    ttl: Ttl
    limits: Limits
    ask_key: bytes | None


class Issuer:
    """Issues leases. One serves all connections; a slow one delays nobody else."""

    def __init__(self, parts: Parts, pools: Pools, pump: Pump) -> None:
        self._parts = parts
        self._pools = pools
        self._pump = pump
        self._deadlines = Deadlines()
        self._turns = Turns()

    async def issue(self, ask: Ask) -> Issued:
        """A new lease, or the same one again where the caller may ask twice.

        Both audit entries are durable when this returns; when it raises, the request entry is, unless the audit log itself failed.
        Raises `InvalidRequest`, `PermissionDenied` (the token ended meanwhile), `LimitExceeded`, `EngineError`, `Unavailable`.
        A cancelled or timed-out issue leaves an intent behind that is removed in the background.
        """
        parts = self._parts
        try:
            plan = self._plan(ask)
        except BrokerError:
            await parts.trail.record([ask.request_entry])
            raise
        parts.issuing += 1
        try:
            with self._deadlines.within(parts.settings.issue_timeout_s):
                if plan.ask_key is None:
                    return await self._fresh(ask, plan)
                return await self._same_or_fresh(ask, plan, plan.ask_key)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"connection {plan.connection.name}: no user within {parts.settings.issue_timeout_s:g} s; what was begun is removed",
                retry_after_s=5,
            ) from None
        finally:
            parts.issuing -= 1

    def _plan(self, ask: Ask) -> _Plan:
        catalog, settings = self._parts.catalog, self._parts.settings
        role = catalog.role(ask.role)
        if role is None:
            raise InvalidRequest(f"unknown role: {ask.role}")
        connection = catalog.connection(role.db_name)
        if not connection.allows(role.name):
            raise InvalidRequest(f'"{role.name}" is not an allowed role')
        ttl = resolve(0, self.bounds(role, token_expires_ms=ask.token_expires_ms))
        if ttl.seconds <= 0:
            raise PermissionDenied
        limits = Limits(per_role=role.max_leases or settings.max_per_role, per_token=settings.max_per_token)
        return _Plan(role, connection, ttl, limits, _ask_key(ask, role))

    def bounds(self, role: Role, *, token_expires_ms: int | None, age_s: int = 0) -> Bounds:
        """What limits a lease of `role` that has lived `age_s` seconds."""
        settings = self._parts.settings
        maximum = min(role.max_ttl_s or settings.max_ttl, settings.max_ttl)
        left = None if token_expires_ms is None else (token_expires_ms - self._parts.store.now_ms()) // 1_000
        return Bounds(
            default_s=role.default_ttl_s or min(settings.default_ttl, maximum), max_s=maximum, age_s=age_s, token_left_s=left
        )

    # asked before -----------------------------------------------------------------------------------------------------

    async def _same_or_fresh(self, ask: Ask, plan: _Plan, ask_key: bytes) -> Issued:
        async with self._turns.take(ask_key):
            lease = await self._parts.store.asked(ask_key)
            if lease is None:
                return await self._fresh(ask, plan)
            if self._worth_giving(ask, plan, lease):
                return await self._again(ask, lease)
            await self._parts.store.free_ask(ask_key)
            return await self._fresh(ask, plan)

    def _worth_giving(self, ask: Ask, plan: _Plan, lease: Lease) -> bool:
        """A repeated idempotency key gets its lease to its end; re-issue wants half of the time to live still ahead."""
        left_ms = lifecycle.ends_ms(lease) - self._parts.store.now_ms()
        if ask.idempotency_key:
            return lease.state is LeaseState.RESERVED or left_ms > 0
        return lease.state is LeaseState.ACTIVE and lease.facts.password is not None and left_ms >= plan.ttl.seconds * 500

    async def _again(self, ask: Ask, lease: Lease) -> Issued:
        if lease.state is not LeaseState.ACTIVE or lease.facts.password is None:
            await self._parts.trail.record([ask.request_entry])
            raise Unavailable("the first request with this Idempotency-Key is still being answered", retry_after_s=1)
        left_s = max(0, (lifecycle.ends_ms(lease) - self._parts.store.now_ms()) // 1_000)
        issued = self._issued(lease.number, lease.facts, Ttl(left_s, lease.facts.capped_by), lease.facts.password)
        await self._parts.trail.record([ask.request_entry])
        # The first answer's login may have been lost with the process that gave it.
        engine = await self._parts.catalog.engine(lease.connection)
        if engine.traits.prepares:
            await self._enable_again(engine, lease, left_s)
        await self._parts.trail.record([ask.response_entry(issued)])
        return issued

    async def _enable_again(self, engine: Engine, lease: Lease, left_s: int) -> None:
        parts = self._parts
        parts.busy.add(lease.number)
        try:
            # Read once more now that revocation leaves it alone: a login must not be turned on after it was turned off.
            now = await parts.store.lease(lease.number)
            if now is None or now.state is not LeaseState.ACTIVE:
                raise Unavailable(
                    "the lease of the first request with this key was ended meanwhile: ask again", retry_after_s=1
                )
            extension = Extension(user=parts.markers.of(lease), lifetime_ms=left_s * 1_000)
            for outcome in await engine.enable([extension]):
                if outcome.error is not None:
                    raise outcome.error
        finally:
            parts.busy.discard(lease.number)

    # prepared ---------------------------------------------------------------------------------------------------------

    async def _fresh(self, ask: Ask, plan: _Plan) -> Issued:
        if plan.role.prepared_users:
            for _ in range(_HANDOUT_ATTEMPTS):
                lease = await self._pools.take(plan.role, plan.connection)
                if lease is None:
                    break
                issued = await self._hand_out(ask, plan, lease)
                if issued is not None:
                    self._parts.metrics.prepared_hits.labels(plan.role.name).inc()
                    return issued
            self._parts.metrics.prepared_misses.labels(plan.role.name).inc()
        return await self._on_demand(ask, plan)

    async def _hand_out(self, ask: Ask, plan: _Plan, lease: Lease) -> Issued | None:
        password = lease.facts.password
        if password is None:
            raise StoreUnavailable(f"prepared user {lease.number} has no password")
        facts = self._facts(ask, plan, lease.facts.username, identity=lease.facts.identity, keep=password)
        issued = self._issued(lease.number, facts, plan.ttl, password)
        item = HandoutItem(
            handout=Handout(
                number=lease.number,
                token=ask.token,
                facts=facts,
                due_in_ms=plan.ttl.seconds * 1_000,
                limits=plan.limits,
                ask_key=plan.ask_key,
            ),
            extension=Extension(user=self._parts.markers.user(lease.number, facts), lifetime_ms=plan.ttl.seconds * 1_000),
            request_entry=ask.request_entry,
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
        self._parts.metrics.leases_issued.labels(plan.role.name).inc()
        return issued

    # on demand --------------------------------------------------------------------------------------------------------

    async def _on_demand(self, ask: Ask, plan: _Plan) -> Issued:
        try:
            engine = await self._parts.catalog.engine_for(plan.connection)
            # A database that is away gets no intents, each of which would have to be revoked there.
            engine.refuse_if_open()
            password = await engine.new_password()
            username = engine.user_name(ask.display_name, plan.role.name)
        except BrokerError:
            await self._parts.trail.record([ask.request_entry])
            raise
        entries: list[bytes] = [ask.request_entry]
        for _ in range(_NAME_ATTEMPTS):
            number, facts = await self._reserve(ask, plan, self._facts(ask, plan, username, keep=password.text), entries)
            entries = []
            try:
                return await self._make(ask, plan, engine, password, number, facts)
            except UserNameTaken:
                username = engine.user_name(ask.display_name, plan.role.name)
        raise UserNameTaken(
            f"connection {plan.connection.name}: {_NAME_ATTEMPTS} generated names were all taken; check username_template"
        )

    async def _reserve(
        self, ask: Ask, plan: _Plan, facts: LeaseFacts, entries: Sequence[bytes]
    ) -> tuple[LeaseNumber, LeaseFacts]:
        """Barrier 1: the intent and the request entry, both durable."""
        parts = self._parts
        number = LeaseNumber(parts.numbers.next())
        reservation = Reservation(
            number=number,
            connection=plan.connection.number,
            token=ask.token,
            facts=facts,
            due_in_ms=int(parts.settings.issue_timeout_s * 1_000) + _RESERVED_GRACE_MS,
            limits=plan.limits,
            ask_key=plan.ask_key,
        )
        reserved, recorded = await asyncio.gather(
            parts.store.reserve([reservation]), parts.trail.record(entries), return_exceptions=True
        )
        if isinstance(reserved, BaseException):
            raise reserved
        _raise_for(reserved[0], plan)
        if isinstance(recorded, BaseException):
            await self._give_up(number, facts)
            raise recorded
        return number, facts

    async def _make(
        self, ask: Ask, plan: _Plan, engine: Engine, password: Password, number: LeaseNumber, facts: LeaseFacts
    ) -> Issued:
        """The statements, then barrier 2: `active` and the response entry, both durable."""
        parts = self._parts
        user = replace(parts.markers.user(number, facts), terms=plan.role.terms)
        lifetime_ms = plan.ttl.seconds * 1_000
        parts.busy.add(number)
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
                token=ask.token,
            )
            moved, recorded = await asyncio.gather(
                parts.store.move([activation]), parts.trail.record([ask.response_entry(issued)]), return_exceptions=True
            )
            _raise_first(recorded, moved)
            if number not in moved:  # type: ignore[operator]  # an exception was raised above
                raise PermissionDenied  # noqa: TRY301 - undone below like every other failure
        except BaseException:
            # Also when cancelled: the intent is durable, so whatever the database did is undone from it.
            await asyncio.shield(self._give_up(number, facts))
            raise
        finally:
            parts.busy.discard(number)
        parts.metrics.leases_issued.labels(plan.role.name).inc()
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

    # small things -----------------------------------------------------------------------------------------------------

    def _facts(self, ask: Ask, plan: _Plan, username: str, *, keep: Secret, identity: str = "") -> LeaseFacts:
        now = self._parts.store.now_ms()
        terms = plan.role.terms
        return LeaseFacts(
            path=plan.role.path,
            role=plan.role.name,
            role_revision=plan.role.revision,
            connection_name=plan.connection.name,
            username=username,  # type: ignore[arg-type]
            identity=identity,
            display_name=ask.display_name,
            accessor=ask.accessor,
            terms=Terms(revocation=terms.revocation, renewal=terms.renewal, options=terms.options),
            recipe=recipe(plan.role),
            password=None if plan.ask_key is None else keep,
            issued_ms=now,
            expires_ms=now + plan.ttl.seconds * 1_000,
            default_ttl_s=plan.role.default_ttl_s,
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


def _raise_for(refusal: Refusal | None, plan: _Plan) -> None:
    if refusal is None:
        return
    if refusal is Refusal.TOKEN_ENDED:
        raise PermissionDenied
    most = {
        Refusal.ROLE_LIMIT: (
            "leases per role",
            f"role {plan.role.name} has its {plan.limits.per_role} live leases (max_leases)",
        ),
        Refusal.TOKEN_LIMIT: ("leases per token", f"this token has its {plan.limits.per_token} live leases (max_per_token)"),
    }
    if refusal in most:
        limit, told = most[refusal]
        raise LimitExceeded(f"lease count quota exceeded: {told}", limit=limit, retry_after_s=10)
    raise Unavailable("the same request is being answered already", retry_after_s=1)


def _raise_first(*results: object) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _ask_key(ask: Ask, role: Role) -> bytes | None:
    """16 bytes for "the same question": token, path and the client's key; or token and path alone where the role re-issues."""
    if not ask.idempotency_key and not role.reissue:
        return None
    kind = "idempotency" if ask.idempotency_key else "reissue"
    question = f"{kind}\x00{ask.token}\x00{role.path}\x00{ask.idempotency_key}"
    return hashlib.blake2b(question.encode(), digest_size=16, person=b"broker/ask/v1").digest()
