"""Why our login is not let into a database of its server, whose owner may close it."""

from __future__ import annotations

from broker_postgresql.lanes import Lane
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier


async def key(lane: Lane, database: str) -> tuple[str, ...]:
    """The statements that let our login into a database, as far as it can be told. Raises what `Lane.session` raises."""
    async with lane.session() as session:
        doors, login = await session.rows(QUERIES["door"], database), session.greeting.login
    name = identifier(database)
    for door in doors:
        if not door["open"]:
            return (f"ALTER DATABASE {name} ALLOW_CONNECTIONS true",)
        if door["at_most"] >= 0:
            return (f"ALTER DATABASE {name} CONNECTION LIMIT -1",)
        if not door["connect"]:
            return (f"GRANT CONNECT ON DATABASE {name} TO {identifier(login)}",)
    return ()
