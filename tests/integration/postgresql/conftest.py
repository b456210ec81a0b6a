"""The PostgreSQL engine on every server that is installed, with a superuser's login and with a plain CREATEROLE one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.engines.protocol import Extension, NewUser, Origin, Outcome, User
from broker.model import Json, LeaseNumber, Terms
from broker.secret import Secret, random_text
from broker.testing.database import ENDED
from broker.testing.postgresql import PostgresServer
from broker_postgresql import Engine

HOME, OTHER = "app", "other"
READERS = "readers"
HEIR = "heir"
BY_GROUP = Terms(options={"grant_roles": [READERS]})
MAKES_ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
_numbers = itertools.count(1)
_boots = itertools.count(1)


class Opened:
    """A session of a user, as the promises of engines want it."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire

    async def is_open(self) -> bool:
        """Whether the server still answers."""
        try:
            await self.wire.execute("SELECT 1")
        except ENDED:
            return False
        return True


@dataclass
class Place:
    """A server and one of the two logins, with what an operator would have set up."""

    server: PostgresServer
    login: str
    password: Secret
    broker: str
    limited: bool

    @property
    def new(self) -> bool:
        """Whether the server is of a version in which membership is said grant by grant."""
        return (self.server.directory / "data" / "PG_VERSION").read_text().strip() >= "16"

    def config(self, **fields: Json) -> dict[str, Json]:
        """A connection's fields."""
        return {
            "connection_url": self.server.url_template(HOME),
            "username": self.login,
            "password": self.password.reveal(),
            "scram_iterations": 16,
            **fields,
        }

    async def root(self, database: str = HOME) -> Any:
        """A superuser's session, for looking and for being somebody else."""
        return await asyncpg.connect(self.server.superuser_dsn(database).reveal())


@dataclass
class Scene:
    """An open engine at a place, and everything that a test does to and with its users. Meets the kit's `Subject`."""

    place: Place
    engine: Engine
    origin: Origin
    stack: AsyncExitStack
    root: Any
    terms: Terms = BY_GROUP
    failing_terms: Terms = field(default_factory=lambda: Terms(creation=(MAKES_ROLE, "SELECT 1 / 0")))
    owning_terms: Terms = field(default_factory=lambda: Terms(creation=(
        MAKES_ROLE, 'GRANT "{{name}}" TO CURRENT_USER', 'SET ROLE "{{name}}"', "SELECT lo_create(0)", "RESET ROLE",
    )))  # fmt: skip

    async def log_in(self, name: str, password: Secret, database: str = HOME) -> Opened | None:
        """A session of the user, or None when it is refused."""
        try:
            wire = await asyncpg.connect(self.place.server.dsn(name, password, database).reveal())
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError):
            return None
        self.stack.push_async_callback(_end, wire)
        return Opened(wire)

    async def session(self, name: str, password: Secret, database: str = HOME) -> Any:
        """A session of a user that must get in."""
        opened = await self.log_in(name, password, database)
        assert opened is not None
        return opened.wire

    async def exists(self, name: str) -> bool:
        """Whether there is a role of that name."""
        return bool(await self.root.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1::text", name))

    async def add_stranger(self, name: str, password: Secret) -> None:
        """A role that somebody else made."""
        await self.root.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password.reveal()}'")

    async def remove_by_hand(self, name: str) -> None:
        """The role goes, its sessions stay."""
        await self.root.execute(f'DROP ROLE "{name}"')

    async def order(self, terms: Terms | None = None, lifetime_ms: int = 3_600_000, name: str = "") -> NewUser:
        """An order for a new user."""
        number = next(_numbers)
        name = name or self.engine.user_name("test", "role")
        marker = f"broker:v1:{self.origin.broker}:{number}:{random_text(8, 'abcdef')}"
        user = User(number=LeaseNumber(number), name=name, identity="", marker=marker, terms=terms or self.terms)
        return NewUser(user=user, password=await self.engine.new_password(), lifetime_ms=lifetime_ms)

    async def create(self, terms: Terms | None = None, **options: Any) -> tuple[User, Secret]:
        """A user on demand, and its password."""
        order = await self.order(terms, **options)
        identity = await self.engine.create(order)
        return replace(order.user, identity=identity), order.password.text

    async def prepare(self, count: int, terms: Terms | None = None) -> list[tuple[User, Secret]]:
        """Users without login."""
        orders = [await self.order(terms) for _ in range(count)]
        outcomes = {outcome.number: outcome for outcome in await self.engine.prepare(orders)}
        assert all(outcome.error is None for outcome in outcomes.values()), outcomes
        return [(replace(o.user, identity=outcomes[o.user.number].identity), o.password.text) for o in orders]

    async def remove(self, users: Sequence[User]) -> dict[str, list[Exception | None]]:
        """All stages of a revocation; what each said of each user."""
        engine = self.engine
        said = {}
        for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
            said[verb.__name__] = errors(await verb(users), users)
        return said

    async def another_engine(self, *, boot: str = "", **fields: Json) -> Engine:
        """A further engine of the same broker, with other fields of its connection; closed with the scene."""
        engine = Engine("other", self.place.config(**fields), replace(self.origin, boot=boot or self.origin.boot))
        self.stack.push_async_callback(engine.close)
        return engine


def errors(outcomes: Sequence[Outcome], users: Sequence[User]) -> list[Exception | None]:
    """The outcomes' errors in the order of the users."""
    by_number = {outcome.number: outcome.error for outcome in outcomes}
    assert len(by_number) == len(outcomes) == len(users)
    return [by_number[user.number] for user in users]


async def _end(wire: Any) -> None:
    try:
        await wire.close(timeout=2)
    except (*ENDED, TimeoutError):
        wire.terminate()


@pytest.fixture(scope="session")
def prepared_server(postgresql: PostgresServer) -> PostgresServer:
    """The server with two databases, a group that reads, and a plain login that has what the manual asks for and no more."""
    asyncio.run(_set_up(postgresql))
    return postgresql


@pytest.fixture(scope="session")
def set_up() -> Callable[[PostgresServer], None]:
    """Prepares a server of a module's own as `prepared_server` is."""
    return lambda server: asyncio.run(_set_up(server))


async def _set_up(server: PostgresServer) -> None:
    wire: Any = await asyncpg.connect(server.superuser_dsn().reveal())
    await wire.execute(f"CREATE DATABASE {HOME}")
    await wire.execute(f"CREATE DATABASE {OTHER}")
    await wire.execute(f"CREATE ROLE limited LOGIN CREATEROLE PASSWORD 'limited'; CREATE ROLE {READERS}; CREATE ROLE {HEIR}")
    if wire.get_server_version().major >= 16:
        await wire.execute(f"GRANT {READERS} TO limited WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    await wire.execute(f"GRANT {HEIR} TO limited")
    await wire.close()
    for database in (HOME, OTHER):
        wire = await asyncpg.connect(server.superuser_dsn(database).reveal())
        await wire.execute(
            "CREATE EXTENSION pg_stat_statements; CREATE TABLE goods (name text); INSERT INTO goods VALUES ('lamp');"
            f"GRANT SELECT ON goods TO {READERS}; GRANT CREATE ON SCHEMA public TO {READERS}, {HEIR}"
        )
        await wire.close()


@pytest.fixture(params=["superuser", "createrole"])
def place(request: pytest.FixtureRequest, prepared_server: PostgresServer) -> Place:
    """Each login on each server."""
    limited = request.param == "createrole"
    login = "limited" if limited else prepared_server.superuser
    password = Secret("limited") if limited else prepared_server.superuser_password
    return Place(prepared_server, login, password, "limited1" if limited else "super1", limited)


@pytest.fixture
async def scene(place: Place) -> AsyncIterator[Scene]:
    """An open engine; whatever its users left is taken away by a superuser in the end."""
    origin = Origin(broker=place.broker, boot=f"boot{next(_boots)}")
    async with AsyncExitStack() as stack:
        engine = Engine("test", place.config(), origin)
        stack.push_async_callback(engine.close)
        root = await place.root()
        stack.push_async_callback(_end, root)
        await engine.open()
        yield Scene(place, engine, origin, stack, root)
    await _clear(place)


async def _clear(place: Place) -> None:
    root = await place.root()
    names = [row[0] for row in await root.fetch("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^v-'")]
    for database in (HOME, OTHER):
        if names:
            wire = await place.root(database)
            quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
            await wire.execute(f"DROP OWNED BY {quoted} CASCADE")
            await wire.close()
    for name in names:
        await root.execute('DROP ROLE IF EXISTS "' + name.replace('"', '""') + '"')
    await root.close()


@pytest.fixture
def errors_of() -> Callable[[Sequence[Outcome], Sequence[User]], list[Exception | None]]:
    """See `errors`."""
    return errors


@pytest.fixture
def longer() -> Callable[[User], Extension]:
    """An extension of a user by an hour."""
    return lambda user: Extension(user=user, lifetime_ms=3_600_000)
