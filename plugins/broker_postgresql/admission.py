"""A login as an application would do it: to see whether a user gets in."""

from __future__ import annotations

import asyncpg

from broker.engines.protocol import User
from broker.errors import DatabaseUnavailable, EngineError, InstructionsFailed
from broker.model import Terms
from broker.secret import Secret
from broker_postgresql.connector import Connector
from broker_postgresql.failures import first_line

PLAIN = Terms(creation=("CREATE ROLE \"{{name}}\" PASSWORD '{{password}}'",))
"""Makes a user that may do no more than anybody."""
_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError, asyncpg.TooManyConnectionsError)


async def log_in(connector: Connector, user: User, password: Secret) -> None:
    """See `Engine.log_in`: to the home database, on the first of the connection's hosts that lets the user in."""
    failure: EngineError | None = None
    for host, port in connector.target.hosts:
        told = await _try(connector, host, port, user, password)
        if told is None:
            return
        # A standby may not know the user yet, and a host that is away says nothing about it.
        failure = told if failure is None or isinstance(failure, DatabaseUnavailable) else failure
    raise failure or DatabaseUnavailable("the connection has no host")


async def _try(connector: Connector, host: str, port: int, user: User, password: Secret) -> EngineError | None:
    try:
        wire = await connector.wire_of(host, port, user.name, password)
    except asyncpg.InvalidPasswordError as error:
        return InstructionsFailed(
            f"the user was refused with its password, so its role gives it another one or none: {first_line(error)}"
        )
    except _REFUSED as error:
        return EngineError(f"the user was refused by {host}:{port}: {first_line(error)} (SQLSTATE {error.sqlstate})")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        return DatabaseUnavailable(f"{host}:{port}: {first_line(error) or type(error).__name__}")
    wire.terminate()
    return None
