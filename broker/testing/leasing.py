"""What a test asks a broker for: a connection, a role, and leases of it. Who is refused what it needs to begin, fails."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from broker.testing.broker import CREATE_USER, Answer, connection_to
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer

BRIEF_S = 8
"""How long a lease lives that runs out while a test looks on; its user logs in before that on a busy machine, too."""
SLACK_S = 5.0
"""How long past its lease a login may work where nobody revokes it (Vault's margin for `{{expiration}}`)."""


class Asked(Protocol):
    """A broker that answers: `Broker`, `BrokerProcess` or a `Caller`."""

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """See `Caller.request`."""
        ...


async def write_connection(broker: Asked, server: PostgresServer, name: str = "pg", **fields: Any) -> None:
    """Writes a connection to a throw-away server, as its superuser unless `fields` say otherwise."""
    _granted(await broker.request("PUT", f"database/config/{name}", connection_to(server, **fields)))


async def write_role(broker: Asked, name: str = "app", **fields: Any) -> None:
    """Writes a role whose users may log in and do nothing more, for an hour; unrehearsed, since a rehearsal makes a user of its own."""
    role = {"db_name": "pg", "creation_statements": CREATE_USER, "default_ttl": "1h", "rehearse": False, **fields}
    _granted(await broker.request("PUT", f"database/roles/{name}", role))


async def prepare(broker: Asked, server: PostgresServer, *, connection_url: str = "", **role: Any) -> None:
    """The connection `pg`, unverified, and the role `app`: no user is made before the first lease."""
    url = connection_url or server.url_template()
    await write_connection(broker, server, connection_url=url, verify_connection=False)
    await write_role(broker, **role)


async def issue(broker: Asked, role: str = "app", **options: Any) -> Any:
    """A lease: the whole body of the answer. `options` are those of `Caller.request`."""
    return _granted(await broker.request("GET", f"database/creds/{role}", **options)).body


async def revoke(broker: Asked, lease_id: str) -> Answer:
    """Asks for the end of a lease; answers whatever came of it."""
    return await broker.request("PUT", "sys/leases/revoke", {"lease_id": lease_id})


async def look_up(broker: Asked, lease_id: str) -> Answer:
    """Asks what a lease is; 400 once it is gone."""
    return await broker.request("PUT", "sys/leases/lookup", {"lease_id": lease_id})


async def users_of(broker: Asked, database: Database) -> dict[str, bool]:
    """The users that this broker has in the database, and whether each has a login."""
    return await database.users((await broker.request("GET", "sys/health")).body["cluster_id"])


def _granted(answer: Answer) -> Answer:
    if answer.status >= HTTPStatus.BAD_REQUEST:
        raise AssertionError(answer)
    return answer
