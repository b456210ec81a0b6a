"""The engine: one PostgreSQL cluster, as `broker.engines.protocol` wants it. Each verb's work is in a module of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import ClassVar, TypeVar

from broker.clock import SystemClock, stopwatch_s
from broker.engines.passwords import new_password
from broker.engines.protocol import (
    PROTOCOL_VERSION,
    Extension,
    Fields,
    Health,
    Lack,
    NewUser,
    Origin,
    Outcome,
    Password,
    Rehearsal,
    Seen,
    Standing,
    Swept,
    Traits,
    User,
)
from broker.errors import EngineError, UserRemains
from broker.model import Json, LeaseNumber, Terms, UserName
from broker.secret import Secret
from broker_postgresql import (
    admission,
    login,
    offspring,
    ownership,
    preflight,
    prepared,
    rehearse,
    revoke,
    settings,
    streaming,
    sweep,
    terms,
)
from broker_postgresql.apart import apart
from broker_postgresql.connector import Connector
from broker_postgresql.creators import Creators
from broker_postgresql.fullness import full_lists
from broker_postgresql.hidden import Hidden
from broker_postgresql.identity import standing
from broker_postgresql.issue import Issuer
from broker_postgresql.lanes import Lane, Lanes
from broker_postgresql.late import starting_with
from broker_postgresql.queries import QUERIES
from broker_postgresql.scram import Stock
from broker_postgresql.session import Greeting, Session
from broker_postgresql.standbys import Standbys

USERS_PER_BATCH = 256
"""Each drop takes an entry in the server's lock table, which the application shares."""
_PAGE = 5_000
_CLOCK_VALID_S = 30.0
_FAREWELL_S = 2.0
_REHEARSED_MS = 3_600_000

T = TypeVar("T")


class Engine:
    """See `broker.engines.protocol.Engine`."""

    protocol_version: ClassVar[int] = PROTOCOL_VERSION
    traits: ClassVar[Traits] = Traits(
        kind="postgresql",
        takes_hash=True,
        server_expiry=True,
        prepares=True,
        rehearses=True,
        inspects=True,
        marker="comment",
        users_per_batch=USERS_PER_BATCH,
    )
    fields: ClassVar[Fields] = Fields(
        connection=settings.described(settings.ConnectionSettings), role=settings.described(terms.RoleOptions)
    )
    secret_fields: ClassVar[frozenset[str]] = settings.SECRET_FIELDS

    def __init__(self, name: str, config: Mapping[str, Json], origin: Origin) -> None:
        self._settings = settings.read_settings(config)
        self._origin = origin
        self._clock = SystemClock()
        self._names = self._settings.names()
        where = f"connection {name}"
        connector = Connector(where, self._settings, origin)
        self._connector = connector
        self._lanes = Lanes(where, self._settings, connector)
        self._standbys = Standbys(self._settings.standbys, connector, self._lanes)
        self._stock = Stock(new_password, self._settings.scram_iterations)
        self._server_clock: tuple[int, float] | None = None
        self._began: datetime | None = None
        """When we connected first, by the server's clock, as far as it matters (see `sweep.twins`)."""
        self._hidden = Hidden(where)
        self._creators = Creators(origin.broker)
        self._issuer = Issuer(self._lanes, self._creators, self._server_now_ms, sends_verifier=self._settings.sends_verifier)

    @staticmethod
    def check_config(config: Mapping[str, Json]) -> Sequence[str]:
        """See `EnginePlugin.check_config`."""
        return settings.warnings_about(config)

    @staticmethod
    def shown(config: Mapping[str, Json]) -> dict[str, Json]:
        """See `EnginePlugin.shown`."""
        return settings.shown(config)

    async def open(self) -> Health:
        """See `Engine.open`."""
        self._lanes.reopen()
        self._standbys.reopen()
        return await self.health()

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._stock.close()
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._lanes.farewell(self._origin)
        self._standbys.close()
        await self._lanes.close()

    async def health(self) -> Health:
        """See `Engine.health`. Where there are several hosts, it looks every few seconds which of them is to be worked with."""
        await self._lanes.look()
        async with self._lanes.general.session() as session:
            greeting = await session.greet()
            self._set_clock(greeting)
            return Health(
                version=greeting.version,
                writable=greeting.writable,
                server_time_ms=greeting.server_ms,
                round_trip_ms=greeting.round_trip_s * 1000,
                started=greeting.started,
                cluster=session.cluster,
                timeline=session.line.name,
                kept_until_ms=session.line.kept_until_ms,
                addresses=self._connector.hosts.addresses,
                others=self._connector.hosts.others,
                concerns=self._connector.hosts.concerns,
            )

    def user_name(self, display_name: str, role: str) -> UserName:
        """See `Engine.user_name`."""
        return self._names.render(display_name, role, self._clock.now_ms())

    async def new_password(self) -> Password:
        """See `Engine.new_password`."""
        return await self._stock.take() if self._settings.sends_verifier else Password(text=new_password())

    def check_terms(self, terms_: Terms) -> Sequence[str]:
        """See `Engine.check_terms`."""
        return terms.warnings_about(terms_)

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        await self._read_clock(self._lanes.general)
        return await self._issuer.create(order)

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """See `Engine.prepare`."""
        await self._read_clock(self._lanes.general)
        return await self._issuer.prepare(orders)

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.enable`."""
        self._stock.put_off()
        await self._read_clock(self._lanes.enabling)
        return await login.enable(self._lanes.enabling, self._creators, extensions, self._server_now_ms())

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.extend`."""
        await self._read_clock(self._lanes.general)
        return await login.extend(self._lanes.general, self._creators, extensions, self._server_now_ms())

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.disable`."""
        outcomes = await self._each(users, self._disable)
        blocked = [user for user, outcome in zip(users, outcomes, strict=True) if outcome.error]
        if not blocked:
            return outcomes
        if not await prepared.clear_the_way(self._lanes.revoking, blocked):
            return outcomes
        again = {outcome.number: outcome for outcome in await self._each(blocked, self._disable)}
        return [again.get(outcome.number, outcome) for outcome in outcomes]

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.end_sessions`."""
        ended = await self._each(users, partial(revoke.end_sessions, hidden=self._hidden))
        return await self._standbys.follow(users, ended)

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.release`."""
        return await apart(self._lanes.revoking, users, partial(ownership.release, self._lanes.revoking))

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.drop`."""
        # A user that a late statement makes after this is found by the proof, and the whole revocation begins again.
        with contextlib.suppress(UserRemains):
            await self._lanes.late.settle(self._lanes.revoking.session, self._origin)
        outcomes = await self._each(users, self._drop)
        self._lanes.late.dropped(outcome.number for outcome in outcomes if outcome.error is None)
        return outcomes

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.prove_absent`."""
        # What still runs of earlier calls could make a user after its absence was proved.
        await self._lanes.late.settle(self._lanes.revoking.session, self._origin)
        return await self._standbys.follow(users, await self._each(users, revoke.prove_absent))

    async def preflight(self, terms_: Sequence[Terms]) -> Sequence[Lack]:
        """See `Engine.preflight`."""
        async with self._lanes.general.session() as session:
            standbys = streaming.named_by(self._settings.standbys, self._connector)
            return await preflight.preflight(session, terms_, self.user_name("preflight", ""), standbys)

    async def rehearse(self, terms_: Terms) -> Rehearsal:
        """See `Engine.rehearse`. No creator makes the user: it would have to be made first, and would stay."""
        name = self.user_name("rehearsal", "")
        user = User(number=LeaseNumber(0), name=name, identity="", marker="broker: rehearsal", terms=terms_)
        password = rehearse.VERIFIER if self._settings.sends_verifier else rehearse.PASSWORD
        await self._read_clock(self._lanes.general)
        async with self._lanes.general.session() as session:
            until_ms = self._server_now_ms() + _REHEARSED_MS
            return await rehearse.rehearse(session, self._creators, user, until_ms, password)

    def plain_terms(self) -> Terms:
        """See `Engine.plain_terms`."""
        return admission.PLAIN

    async def log_in(self, user: User, password: Secret) -> None:
        """See `Engine.log_in`."""
        await admission.log_in(self._connector, user, password)

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """See `Engine.look_up`."""
        async with self._lanes.revoking.session() as session:
            return await standing(session, users)

    async def sweep(self) -> Sequence[Swept]:
        """See `Engine.sweep`."""
        async with self._lanes.revoking.session() as session:
            # Before a stage begins, which tells the sessions of other processes to end.
            self._began = self._began or session.greeting.backend_start
            twins = await sweep.twins(session, self._origin, self._began)
        swept = await self._stage((), lambda session, _: sweep.sweep(session))
        return [*twins, *swept, *await self._standbys.sweep()]

    async def abandoned(self) -> Sequence[Swept]:
        """See `Engine.abandoned`."""
        async with self._lanes.revoking.session() as session:
            found = await sweep.abandoned(session)
        return [*found, *await self._standbys.abandoned()]

    async def inspect(self) -> Sequence[str]:
        """See `Engine.inspect`."""
        return await full_lists(self._lanes.general, starting_with(marker_prefix(self._origin)))

    async def list_users(self) -> AsyncIterator[Seen]:
        """See `Engine.list_users`. Page by page, so no transaction stays open while the caller works."""
        last, pattern = 0, starting_with(marker_prefix(self._origin))
        while True:
            async with self._lanes.revoking.session() as session:
                rows = await session.rows(QUERIES["marked"], pattern, last, _PAGE)
            for row in rows:
                yield Seen(
                    name=UserName(row["name"]), identity=str(row["oid"]), marker=row["marker"], can_login=row["can_login"]
                )
            if len(rows) < _PAGE:
                return
            last = rows[-1]["oid"]

    async def _each(
        self, users: Sequence[User], stage: Callable[[Session, Sequence[User]], Awaitable[list[Outcome]]]
    ) -> list[Outcome]:
        return await apart(self._lanes.revoking, users, lambda some: self._stage(some, stage))

    async def _stage(self, users: Sequence[User], stage: Callable[[Session, Sequence[User]], Awaitable[T]]) -> T:
        async with self._lanes.revoking.session() as session:
            if not await self._lanes.late.tell(session, self._origin):
                await self._lanes.late.turn_off_again(partial(revoke.disable, session))
            return await stage(session, users)

    async def _disable(self, session: Session, users: Sequence[User]) -> list[Outcome]:
        self._lanes.late.doubt(users)
        return await revoke.disable(session, users)

    async def _drop(self, session: Session, users: Sequence[User]) -> list[Outcome]:
        held = {outcome.number: outcome for outcome in await offspring.held(session, users)}
        dropped = await revoke.drop(session, [user for user in users if user.number not in held], self._hidden)
        return [*dropped, *held.values()]

    async def _read_clock(self, lane: Lane) -> None:
        """Asks the server for the time where what we know of it is old."""
        if self._server_clock is not None and stopwatch_s() - self._server_clock[1] < _CLOCK_VALID_S:
            return
        async with lane.session() as session:
            self._set_clock(await session.greet())

    def _set_clock(self, greeting: Greeting) -> None:
        self._server_clock = (greeting.server_ms, greeting.seen_at_s)

    def _server_now_ms(self) -> int:
        """What the server's clock says now, as far as it was read; our own before that."""
        if self._server_clock is None:
            return self._clock.now_ms()
        read_ms, at_s = self._server_clock
        return read_ms + int((stopwatch_s() - at_s) * 1000)


def marker_prefix(origin: Origin) -> str:
    """How the markers of this broker's users begin."""
    return f"broker:v1:{origin.broker}:"
