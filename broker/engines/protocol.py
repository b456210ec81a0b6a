"""How a database is spoken to: the promises that every engine keeps. It says nothing about SQL, schemas or transactions.

An engine plugin offers, under the entry-point group `broker.engines`, a class that meets `EnginePlugin`; its instances meet
`Engine`. One instance serves one connection (one database cluster). `broker.engines.testing` checks the promises.

Every verb may be called twice for the same user and then succeeds again: a crash between an act and the note that it was
done makes that happen. Verbs that take many users answer for each one; one bad user never fails another. An engine raises
only `EngineError` (and `asyncio.CancelledError`); texts of its errors name no secret.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from msgspec import Struct, field

from broker.errors import EngineError
from broker.model import Json, LeaseNumber, Terms, UserName
from broker.secret import Secret

_T = TypeVar("_T")
PROTOCOL_VERSION = 1
"""Raised when an engine written for the former version would break. The registry refuses others."""


class Traits(Struct, frozen=True, kw_only=True):
    """What an engine declares about its kind of database."""

    kind: str
    """Name for metrics and logs, e.g. `postgresql`."""
    identity: Literal["name", "name and host"] = "name"
    issue: Literal["atomic", "locked first"] = "atomic"
    """Whether a user appears complete or not at all, or is made locked and unlocked as the last step."""
    takes_hash: bool = False
    """Whether the password can be sent as a verifier, so that the server never reads it."""
    server_expiry: bool = False
    """Whether the server itself refuses logins after the lease's time."""
    prepares: bool = False
    """Whether `prepare` and `enable` are offered."""
    rehearses: bool = False
    """Whether `preflight`, `rehearse`, `plain_terms` and `log_in` are offered."""
    inspects: bool = False
    """Whether `inspect` is offered."""
    marker: Literal["comment", "name", "role"] = "name"
    drop_ends_sessions: bool = False
    users_per_batch: int = 1
    """The most users that one call of a batch verb may carry."""

    def batches(self, users: Sequence[_T]) -> list[Sequence[_T]]:
        """`users`, or what stands for them, in such calls."""
        size = max(1, self.users_per_batch)
        return [users[start : start + size] for start in range(0, len(users), size)]


class Fields(Struct, frozen=True, kw_only=True):
    """What an engine takes beside the broker's own fields: by name, as a JSON Schema (draft 2020-12) that stands alone.

    For people and programs that write them; what is wrong with a value the engine itself says.
    """

    connection: Mapping[str, Json] = field(default_factory=dict)
    role: Mapping[str, Json] = field(default_factory=dict)
    """The names of `Terms.options`."""


class User(Struct, frozen=True, kw_only=True):
    """One database user of one lease: all that the engine may rely on when it changes or removes it."""

    number: LeaseNumber
    name: UserName
    identity: str
    """What the server calls it, as `create` or `prepare` answered; empty when the answer was never heard."""
    marker: str
    """Text that proves origin, kept beside the user in the database. Every database user may read it."""
    terms: Terms
    spared: bool = False
    """Whether its sessions may go on while its login is turned off, as far as they don't keep that from being done."""


class Password(Struct, frozen=True, kw_only=True):
    """A generated password, and the verifier to send instead of it where the engine takes one (else empty)."""

    text: Secret
    verifier: Secret = field(default_factory=lambda: Secret(""))


class NewUser(Struct, frozen=True, kw_only=True):
    """A user to make."""

    user: User
    password: Password
    lifetime_ms: int
    """From now on, by the server's clock; for a prepared user it counts from `enable`."""


class Extension(Struct, frozen=True, kw_only=True):
    """A user whose login shall work for `lifetime_ms` from now on."""

    user: User
    lifetime_ms: int


class Outcome(Struct, frozen=True):
    """How one user of a batch fared: `error` None means that the verb's promise holds for it."""

    number: LeaseNumber
    error: EngineError | None = None
    identity: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """What a connection's server says of itself."""

    version: str
    writable: bool
    server_time_ms: int
    round_trip_ms: float
    started: str = ""
    """Changes when the server restarts or another one takes its place: what it did not flush may then be lost."""
    cluster: str = ""
    """Names the set of users that the server keeps: the same over restarts and failovers, another one where the same identity may
    be another user. A connection that leads to another cluster says nothing about users of the former. Empty: can't be told."""
    timeline: str = ""
    """Which line of commits the server goes on with. Another one than before means that a server took over which may lack the last
    commits of its predecessor: users that were dropped may be back, new ones missing. Of decimal numbers a lower one was superseded,
    and nothing is done there. Empty: can't be told."""
    kept_until_ms: int | None = None
    """By the predecessor's clock, when the last commit was made that this line has of it; None where that is not known."""
    addresses: tuple[str, ...] = ()
    """By which of the connection's addresses this server was reached, where it has several; empty: one, or the server can't be told."""
    others: tuple[str, ...] = ()
    """The connection's other addresses. On one timeline, whoever is reached by none of the former `addresses`, though one of them is among
    these, is another server than before, which may lack its users: nothing is done there."""
    concerns: tuple[str, ...] = ()
    """What is wrong with the servers of the connection and only people can put right, in sentences."""


class Seen(Struct, frozen=True, kw_only=True):
    """A user with a marker of this broker, found in the database."""

    name: UserName
    identity: str
    marker: str
    can_login: bool


class Standing(Struct, frozen=True, kw_only=True):
    """How the user of a lease was found in the database."""

    number: LeaseNumber
    identity: str
    can_login: bool
    expires_ms: int | None = None
    """When the server itself refuses logins, by its clock; None: never, or it does not do that."""


class Swept(Struct, frozen=True, kw_only=True):
    """What a sweep ended, or what kept it from doing so; where it was only looked (`Engine.abandoned`), what there is to end."""

    identity: str = ""
    """What the server called the user that is no more; empty where `error` is not about one user."""
    sessions: int = 0
    """How many of its sessions were ended; with an error, how many go on."""
    place: str = ""
    """The server of the cluster; empty for the one that takes writes."""
    error: EngineError | None = None


class Lack(Struct, frozen=True, kw_only=True):
    """Something that the broker's login at a database may not do, or that is not there."""

    need: str
    """What is missing, or what it would be for; the same want has the same text."""
    remedy: str = ""
    """What gives it, to be run by an administrator of the database; empty where nothing simple does."""
    reason: str = ""
    """What the database answered when it was tried; empty where it was only looked up."""
    fatal: bool = False
    """Whether no user at all can be made without it."""


class Rehearsal(Struct, frozen=True, kw_only=True):
    """How a role's instructions did when they were tried."""

    warnings: Sequence[str] = ()
    removable: bool = True
    """Whether such users can be removed as they were made; False where a real one would only be left behind."""


class Origin(Struct, frozen=True, kw_only=True):
    """Who is speaking to the database, which goes into what the server shows of its sessions, and what is known of that server."""

    broker: str
    """Short id of the store's broker (letters and digits); the same over restarts."""
    boot: str
    """Id of this process; sessions of this broker with another one belong to a process that is dead."""
    timeline: str = ""
    """On which the connection was worked with last (see `Health.timeline`); empty where that is not known, or another one is meant."""
    addresses: tuple[str, ...] = ()
    """By which its server was reached then (see `Health.addresses`)."""


class Engine(Protocol):
    """One open connection to one database cluster. Every call has a time limit from outside and may be cancelled."""

    @property
    def traits(self) -> Traits:
        """What its kind of database can do; the same for the life of the engine. Engines have it as a class variable."""
        ...

    async def open(self) -> Health:
        """Connects, and answers what is there. May be called again after a failure. Raises `DatabaseUnavailable`."""
        ...

    async def close(self) -> None:
        """Ends every session that it holds. Never raises; safe at any moment, also twice."""
        ...

    async def health(self) -> Health:
        """Asks the server once more. Raises `DatabaseUnavailable`."""
        ...

    def user_name(self, display_name: str, role: str) -> UserName:
        """A fresh name from the connection's template, within the database's limit, with at least 12 random characters."""
        ...

    async def new_password(self) -> Password:
        """A fresh password (at least 128 bits of randomness), its verifier made off the event loop."""
        ...

    def check_terms(self, terms: Terms) -> Sequence[str]:
        """Warnings about a role's terms. Raises `InvalidRequest` naming the field that can't work. Touches no database."""
        ...

    async def create(self, order: NewUser) -> str:
        """Makes the user, complete: it can log in until its lifetime ends. Answers the server's identity for it.

        Raises `UserNameTaken` (nothing touched), `InstructionsFailed` (nothing left), `DatabaseUnavailable` (outcome
        unknown: the user may exist).
        """
        ...

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """Makes users that can't log in, neither before nor after this returns, whatever the role's instructions say."""
        ...

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """Lets users log in for their lifetime. `UserMissing` for one that is not there or not this lease's."""
        ...

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """Moves the server's own expiry, without turning on a login that is off. `UserMissing` as above."""
        ...

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Stage 1 of revocation: no new login succeeds. One that is absent, or not this lease's, counts as done, untouched."""
        ...

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Stage 2: every session of the user is over, seen to be gone. Leaves others' sessions alone."""
        ...

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Stage 3: what the user owns or was granted, in every database, is handed over, dropped or revoked as its terms say.

        `UserRemains` with its remedy where that can't be done safely.
        """
        ...

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Stage 4: the user is removed. `UserRemains` with its remedy where the database refuses."""
        ...

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Stage 5: no such user, no session of it, nothing pending in its name.

        And no late statement of a dead process of this broker can bring it back. `UserRemains` otherwise.
        """
        ...

    async def preflight(self, terms: Sequence[Terms]) -> Sequence[Lack]:
        """What is missing for users of these terms: looked up, then tried out with a user that nobody else ever sees. Leaves no trace.

        Raises `DatabaseUnavailable`.
        """
        ...

    async def rehearse(self, terms: Terms) -> Rehearsal:
        """Has a role's instructions make, renew and remove a user that nobody else ever sees. Leaves no trace.

        Raises `InstructionsFailed` naming the instruction and the place in it, `DatabaseUnavailable`, and `EngineError` where it was not
        the instructions that failed.
        """
        ...

    def plain_terms(self) -> Terms:
        """Instructions of the engine's own for a user without any right but to log in; it is made only to see that this works."""
        ...

    async def log_in(self, user: User, password: Secret) -> None:
        """Opens a session as an application would, and ends it again.

        Raises `InstructionsFailed` where the password is refused, so that the user was made with another one or none; `EngineError` where
        the server has another reason, `DatabaseUnavailable` where it does not answer.
        """
        ...

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """How those users are that are there and their leases' own; who is left out is absent. Changes nothing.

        Raises `DatabaseUnavailable`: then nothing is known of any.
        """
        ...

    async def sweep(self) -> Sequence[Swept]:
        """Ends the sessions of users that no longer exist, whosever they were: what slipped through a revocation, or was revived.

        Leaves everybody else's alone. Answers what it ended, and, with the remedy, what it may not or could not end; nothing where there
        was nothing to do. Raises `DatabaseUnavailable`.
        """
        ...

    async def abandoned(self) -> Sequence[Swept]:
        """Sessions of users that no longer exist, by user: what a sweep would end, or try to. Changes nothing.

        An entry with an error says where in the cluster it could not be looked. Raises `DatabaseUnavailable`.
        """
        ...

    async def inspect(self) -> Sequence[str]:
        """What is wrong in the database, or soon will be, and only people can put right, in sentences; nothing where all is well.

        The same state gives the same sentences, so that each is told once. Changes nothing. Raises `DatabaseUnavailable`.
        """
        ...

    def list_users(self) -> AsyncIterator[Seen]:
        """All users that carry a marker of this broker, in no order."""
        ...


class EnginePlugin(Protocol):
    """What the entry point names: the engine's class."""

    # Properties here, class variables there: a type checker lets a class meet a protocol only so.
    @property
    def protocol_version(self) -> int:
        """The `PROTOCOL_VERSION` that it was written for."""
        ...

    @property
    def traits(self) -> Traits:
        """See `Engine.traits`."""
        ...

    @property
    def fields(self) -> Fields:
        """What its connections and roles may say, for the OpenAPI document."""
        ...

    @property
    def secret_fields(self) -> frozenset[str]:
        """Fields of the connection that are never shown again."""
        ...

    def __call__(self, name: str, config: Mapping[str, Json], origin: Origin) -> Engine:
        """An engine for the connection `name`; touches nothing yet. Raises `InvalidRequest` naming the field."""
        ...

    def check_config(self, config: Mapping[str, Json]) -> Sequence[str]:
        """Warnings about a connection's fields (unknown ones among them). Raises `InvalidRequest` naming the field."""
        ...

    def shown(self, config: Mapping[str, Json]) -> dict[str, Json]:
        """The fields as they may be read back: `secret_fields` left out, passwords in URLs masked as `xxxxx`."""
        ...
