"""One connection to the server, with what we know of it and the notices that it sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

import asyncpg

from broker.clock import stopwatch_s
from broker.errors import DatabaseUnavailable
from broker_postgresql.failures import Unreadable
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.veil import Veil

Wire: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_GREETING_TIMEOUT_S = 5
NOTHING_GRANTED = "01007"
NOTHING_REVOKED = "01006"


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a server said when the connection was made."""

    version: str
    number: int
    """The version as one number, e.g. 180006."""
    writable: bool
    server_ms: int
    started: str
    login: str
    database: str
    pid: int
    backend_start: datetime
    superuser: bool
    signals: bool
    """Whether our login may end sessions of roles that it is no member of."""
    seen_at_s: float
    """When, by our stopwatch, the server's clock stood at `server_ms`."""
    round_trip_s: float

    @property
    def inherits_by_grant(self) -> bool:
        """Whether what a membership is good for is said in each grant (16 and later)."""
        return self.number >= 160_000  # noqa: PLR2004 - the release that changed it

    @property
    def spreads(self) -> bool:
        """Whether users are made by creator roles (see `creators`)."""
        return self.inherits_by_grant and not self.superuser


@dataclass(frozen=True, slots=True)
class Line:
    """The line of commits that a server goes on with (see `Health.timeline`); number 0 where it can't be told."""

    number: int = 0
    kept_until_ms: int | None = None

    @property
    def name(self) -> str:
        """As `Health.timeline` has it."""
        return str(self.number) if self.number else ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A message below an error: warnings, and what our own blocks tell us."""

    sqlstate: str
    message: str


@dataclass(slots=True, eq=False)
class Session:
    """A connection in our hands; used by one task at a time."""

    wire: Wire
    greeting: Greeting
    cluster: str = ""
    """See `Health.cluster`."""
    line: Line = field(default_factory=Line)
    notices: list[Notice] = field(default_factory=list)
    born_s: float = field(default_factory=stopwatch_s)
    veil: Veil = field(default_factory=Veil)
    acting: str = ""
    """The role that it is set to; empty: our login itself."""
    seen: set[tuple[tuple[bool, bool], ...]] = field(default_factory=set)
    """The kinds of orders that it carried out (see `orders.Kinds`)."""
    routines: set[str] | None = field(default_factory=set)
    """The functions that it keeps for `orders`; None where it can't."""
    public: str = ""
    """See `schemas.version`."""
    public_seen_s: float = float("-inf")
    """When that was looked up last."""

    def __post_init__(self) -> None:
        self.wire.add_log_listener(self._note)

    async def run(self, statements: str) -> list[Notice]:
        """Runs a string of statements, one transaction and one round trip, and answers the notices that came with it."""
        self.notices.clear()
        await self.wire.execute(statements)
        # The driver schedules each notice before it wakes us, so all are there.
        return list(self.notices)

    async def run_as(self, parts: Iterable[tuple[str, str]]) -> list[Notice]:
        """Runs statements, each after the role that is to act (empty: our login), as `run` does; the last role stays set.

        Where one fails, the server undoes all of them, the change of role too.
        """
        acting, texts = self.acting, []
        for role, text in parts:
            if role != acting:
                texts.append(_set_role(role))
                acting = role
            texts.append(text)
        notices = await self.run(";".join(texts))
        self.acting = acting
        return notices

    async def act_as(self, role: str) -> None:
        """Sets the role that acts from now on; empty: our login."""
        if role != self.acting:
            await self.run(_set_role(role))
            self.acting = role

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of a query, prepared once per connection; the notices that came with it are in `notices`.

        Raises `Unreadable` where a text in them is none, as names from databases of other encodings may be.
        """
        self.notices.clear()
        try:
            return await self.wire.fetch(query, *arguments)
        except UnicodeDecodeError:
            raise Unreadable("a name on the server is no text in its encoding") from None

    async def greet(self) -> Greeting:
        """What the server says now."""
        return await greet(self.wire)

    def usable(self) -> bool:
        """Whether it is open, between transactions, and its server not (again) a standby."""
        if self.wire.is_closed() or self.wire.is_in_transaction():
            return False
        return getattr(self.wire.get_settings(), "in_hot_standby", "off") != "on"

    def _note(self, _wire: object, message: asyncpg.PostgresLogMessage) -> None:
        self.notices.append(Notice(message.sqlstate or "", message.message or ""))


def _set_role(role: str) -> str:
    return f"SET ROLE {identifier(role) if role else 'NONE'}"


async def greet(wire: Wire) -> Greeting:
    """Asks the server who it is and how its clock stands. Raises what the driver raises, and `TimeoutError`."""
    before = stopwatch_s()
    row = await wire.fetchrow(QUERIES["greeting"], timeout=_GREETING_TIMEOUT_S)
    now = stopwatch_s()
    if row is None:
        raise DatabaseUnavailable("the broker's login is not among the server's roles")
    return Greeting(**row, seen_at_s=(before + now) / 2, round_trip_s=now - before)


async def line_of(wire: Wire) -> Line:
    """The line of commits of a server that takes writes. Raises what the driver raises."""
    try:
        row = await wire.fetchrow(QUERIES["timeline"], timeout=_GREETING_TIMEOUT_S)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError, asyncpg.FeatureNotSupportedError):
        row = None
    return Line() if row is None else Line(int(row["timeline"], 16), row["kept_until_ms"])


async def cluster_of(wire: Wire, home: str) -> str:
    """What `Health.cluster` says: the system identifier, or where the server keeps it to itself, facts that stay as long.

    Those are weaker: two fresh clusters may agree in them, and another home database or login in the same cluster differs. So where
    they matter the operator's revocation of EXECUTE on `pg_control_system` costs some certainty. Raises what the driver raises.
    """
    try:
        found = await wire.fetchval(QUERIES["cluster"], timeout=_GREETING_TIMEOUT_S)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError, asyncpg.FeatureNotSupportedError):
        found = await wire.fetchval(QUERIES["cluster_facts"], home, timeout=_GREETING_TIMEOUT_S)
    return str(found or "")
