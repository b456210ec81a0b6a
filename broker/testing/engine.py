"""A database in memory and its engine, for tests that are about the broker and not about a database.

`MemoryServer` is the database: it outlives the engines that speak to it, as a real one outlives a broker's crash.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from broker.clock import Clock, SystemClock
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
from broker.engines.usernames import UserNameTemplate
from broker.errors import EngineError, InstructionsFailed, InvalidRequest, UserMissing, UserNameTaken, UserRemains
from broker.model import Json, Terms, UserName
from broker.secret import Secret

FAIL = "fail"
"""A creation instruction that the database refuses."""
NO_PASSWORD = "no password"
"""A creation instruction that makes the user with another password than it is told."""
OWN = "own"
"""A creation instruction after which the user owns something."""
DROP_OWNED = "drop_owned"
"""A term's option: what the user owns may be destroyed with it."""

_TEMPLATE = "v-{{.DisplayName | truncate 8}}-{{.RoleName | truncate 8}}-{{random 20}}"
_MAX_NAME_BYTES = 63
_KNOWN_FIELDS = frozenset({"connection_url", "username", "password"})


@dataclass(slots=True)
class Account:
    """A user in the database."""

    identity: str
    marker: str = ""
    password: Secret = field(default_factory=lambda: Secret(""))
    can_login: bool = True
    expires_ms: int | None = None
    owns: bool = False
    sessions: set[int] = field(default_factory=set)


class MemoryServer:
    """A database with users and sessions, kept in plain dictionaries that a test may look into and bend."""

    _clusters = itertools.count(1)

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.accounts: dict[str, Account] = {}
        self.abandoned: dict[str, set[int]] = {}
        """Sessions of users that are no more, by the users' identities."""
        self.cluster = f"memory {next(self._clusters)}"
        self.timeline = "1"
        self.addresses: tuple[str, ...] = ()
        self.others: tuple[str, ...] = ()
        self.lacks: list[Lack] = []
        """What the broker's login lacks."""
        self.concerns: list[str] = []
        """What `inspect` says."""
        self._numbers = itertools.count(1)

    def add(self, name: str, marker: str = "", password: str = "") -> Account:
        """A user that somebody made: with login on, without an end."""
        account = Account(identity=str(next(self._numbers)), marker=marker, password=Secret(password))
        self.accounts[name] = account
        return account

    def log_in(self, name: str, password: Secret) -> int | None:
        """The number of a new session, or None when the login is refused."""
        account = self.accounts.get(name)
        if account is None or not account.can_login or account.password != password:
            return None
        if account.expires_ms is not None and account.expires_ms <= self.clock.now_ms():
            return None
        session = next(self._numbers)
        account.sessions.add(session)
        return session

    def is_open(self, session: int) -> bool:
        """Whether that session still stands."""
        open_ = [*(account.sessions for account in self.accounts.values()), *self.abandoned.values()]
        return any(session in sessions for sessions in open_)

    def remove(self, name: str) -> None:
        """Removes a user as an operator would by hand; its sessions go on."""
        account = self.accounts.pop(name)
        self.abandoned[account.identity] = account.sessions


class MemoryPlugin:
    """Meets `EnginePlugin`: makes engines for one server, whatever the connection's fields are."""

    protocol_version: ClassVar[int] = PROTOCOL_VERSION
    fields: ClassVar[Fields] = Fields(connection={name: {"type": "string"} for name in sorted(_KNOWN_FIELDS)})
    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    traits: ClassVar[Traits] = Traits(
        kind="memory",
        server_expiry=True,
        prepares=True,
        rehearses=True,
        inspects=True,
        marker="comment",
        users_per_batch=64,
    )

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    def __call__(self, name: str, config: Mapping[str, Json], origin: Origin) -> MemoryEngine:  # noqa: ARG002 - one server
        """See `EnginePlugin.__call__`."""
        return MemoryEngine(self._server, origin)

    def check_config(self, config: Mapping[str, Json]) -> Sequence[str]:
        """See `EnginePlugin.check_config`; any fields will do, and three are known."""
        return [f"unknown field {name}" for name in config if name not in _KNOWN_FIELDS]

    def shown(self, config: Mapping[str, Json]) -> dict[str, Json]:
        """See `EnginePlugin.shown`."""
        return {name: value for name, value in config.items() if name not in self.secret_fields}


class MemoryEngine:
    """Meets `Engine` and keeps its promises, at once and always. For faults, wrap it in `broker.testing.faults.Interposed`."""

    traits: ClassVar[Traits] = MemoryPlugin.traits

    def __init__(self, server: MemoryServer, origin: Origin) -> None:
        self._server = server
        self._prefix = f"broker:v1:{origin.broker}:"
        self._template = UserNameTemplate(_TEMPLATE, _MAX_NAME_BYTES)

    async def open(self) -> Health:
        """See `Engine.open`."""
        return await self.health()

    async def close(self) -> None:
        """See `Engine.close`."""

    async def health(self) -> Health:
        """See `Engine.health`."""
        return Health(
            version="memory 1",
            writable=True,
            server_time_ms=self._server.clock.now_ms(),
            round_trip_ms=0.0,
            cluster=self._server.cluster,
            timeline=self._server.timeline,
            addresses=self._server.addresses,
            others=self._server.others,
        )

    def user_name(self, display_name: str, role: str) -> UserName:
        """See `Engine.user_name`."""
        return self._template.render(display_name, role, self._server.clock.now_ms())

    async def new_password(self) -> Password:
        """See `Engine.new_password`."""
        return Password(text=new_password())

    def check_terms(self, terms: Terms) -> Sequence[str]:
        """See `Engine.check_terms`; of the instructions only `FAIL` and `OWN` of this module mean anything."""
        if not terms.creation:
            raise InvalidRequest("creation_statements: empty creation statements")
        return ()

    async def create(self, order: NewUser) -> str:
        """See `Engine.create`."""
        account = self._make(order)
        account.can_login = True
        return account.identity

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """See `Engine.prepare`."""
        outcomes = []
        for order in orders:
            try:
                outcomes.append(Outcome(order.user.number, identity=self._make(order).identity))
            except EngineError as error:
                outcomes.append(Outcome(order.user.number, error))
        return outcomes

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.enable`."""
        outcomes = await self.extend(extensions)
        for extension, outcome in zip(extensions, outcomes, strict=True):
            if outcome.error is None:
                self._server.accounts[extension.user.name].can_login = True
        return outcomes

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """See `Engine.extend`."""
        outcomes = []
        for extension in extensions:
            account = self._own(extension.user)
            if account is None:
                outcomes.append(Outcome(extension.user.number, UserMissing()))
                continue
            account.expires_ms = self._server.clock.now_ms() + extension.lifetime_ms
            outcomes.append(Outcome(extension.user.number, identity=account.identity))
        return outcomes

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.disable`."""
        return self._each(users, _turn_off)

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.end_sessions`."""
        return self._each(users, lambda account, _user: account.sessions.clear())

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.release`."""
        return self._each(users, _release)

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.drop`."""
        return self._each(users, self._drop)

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """See `Engine.prove_absent`."""
        return self._each(users, _still_there)

    async def preflight(self, terms: Sequence[Terms]) -> Sequence[Lack]:  # noqa: ARG002 - terms need no rights here
        """See `Engine.preflight`."""
        return list(self._server.lacks)

    async def rehearse(self, terms: Terms) -> Rehearsal:
        """See `Engine.rehearse`."""
        if FAIL in terms.creation:
            raise InstructionsFailed(f"creation_statements, statement {terms.creation.index(FAIL) + 1}: refused")
        kept = OWN in terms.creation and not terms.options.get(DROP_OWNED)
        return Rehearsal(warnings=("users of this role would own something",) if kept else (), removable=not kept)

    def plain_terms(self) -> Terms:
        """See `Engine.plain_terms`."""
        return Terms(creation=("plain",))

    async def log_in(self, user: User, password: Secret) -> None:
        """See `Engine.log_in`."""
        account = self._own(user)
        session = self._server.log_in(user.name, password)
        if session is None or account is None:
            raise InstructionsFailed("the user was refused with its password")
        account.sessions.discard(session)

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """See `Engine.look_up`."""
        found = [(user.number, self._own(user)) for user in users]
        return [
            Standing(number=number, identity=account.identity, can_login=account.can_login, expires_ms=account.expires_ms)
            for number, account in found
            if account is not None
        ]

    async def sweep(self) -> Sequence[Swept]:
        """See `Engine.sweep`."""
        swept = await self.abandoned()
        self._server.abandoned.clear()
        return swept

    async def abandoned(self) -> Sequence[Swept]:
        """See `Engine.abandoned`."""
        return [Swept(identity=identity, sessions=len(some)) for identity, some in self._server.abandoned.items() if some]

    async def inspect(self) -> Sequence[str]:
        """See `Engine.inspect`."""
        return list(self._server.concerns)

    async def list_users(self) -> AsyncIterator[Seen]:
        """See `Engine.list_users`."""
        for name, account in list(self._server.accounts.items()):
            if account.marker.startswith(self._prefix):
                yield Seen(name=UserName(name), identity=account.identity, marker=account.marker, can_login=account.can_login)

    def _own(self, user: User) -> Account | None:
        """The user's account, unless it is absent or somebody else's."""
        account = self._server.accounts.get(user.name)
        return account if account is not None and account.marker == user.marker else None

    def _make(self, order: NewUser) -> Account:
        """A complete account without login, or an error and nothing."""
        user = order.user
        if FAIL in user.terms.creation:
            raise InstructionsFailed("the role's creation instructions failed in the database")
        if user.name in self._server.accounts and self._own(user) is None:
            raise UserNameTaken
        account = self._own(user) or self._server.add(user.name, user.marker)
        account.password = Secret("another") if NO_PASSWORD in user.terms.creation else order.password.text
        account.expires_ms = self._server.clock.now_ms() + order.lifetime_ms
        account.owns = OWN in user.terms.creation
        account.can_login = False
        return account

    def _each(self, users: Sequence[User], act: Callable[[Account, User], None]) -> Sequence[Outcome]:
        """Acts on each user's account; one that is not there, or somebody else's, counts as done."""
        outcomes = []
        for user in users:
            account = self._own(user)
            try:
                if account is not None:
                    act(account, user)
                outcomes.append(Outcome(user.number))
            except EngineError as error:
                outcomes.append(Outcome(user.number, error))
        return outcomes

    def _drop(self, account: Account, user: User) -> None:
        if account.owns:
            raise UserRemains("the user owns something", remedy=_remedy(user))
        del self._server.accounts[user.name]


def _turn_off(account: Account, _user: User) -> None:
    account.can_login = False


def _release(account: Account, user: User) -> None:
    if account.owns and not user.terms.options.get(DROP_OWNED):
        raise UserRemains("the user owns something", remedy=_remedy(user))
    account.owns = False


def _still_there(_account: Account, _user: User) -> None:
    raise UserRemains("the user still exists")


def _remedy(user: User) -> tuple[str, ...]:
    return (f"take what {user.name} owns",)
