"""What happens in more than one story."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import asyncpg

from broker.clock import stopwatch_s
from broker.demo.caller import DemoFailed
from broker.demo.scene import DATABASE, GROUP, LOGIN, Scene
from broker.demo.screen import Screen

ROLE = "reader"
PRODUCTS = "SELECT id, name, price FROM products ORDER BY id"
_POLL_S = 0.02
_DROPPED_WITHIN_S = 5


async def introduce(scene: Scene, screen: Screen) -> None:
    """Shows what there is."""
    screen.part("A database and a broker")
    version = await scene.watch.fetchval("SHOW server_version")
    screen.act("database", f"PostgreSQL {version} on {scene.server.host}:{scene.server.port}, SCRAM passwords only")
    screen.act("broker", f"Vault's HTTP API on {scene.broker.address}")
    screen.note(f"The broker logs in as '{LOGIN}': no superuser, a plain user who may make users.")


async def write_connection(scene: Scene, screen: Screen, *roles: str) -> None:
    """The operator says how the broker logs in, and which roles may be asked for."""
    screen.act("operator", f"POST /v1/database/config/{DATABASE}")
    connection = {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": scene.server.url_template(DATABASE),
        "username": LOGIN,
        "password": scene.login_password.reveal(),
        "allowed_roles": list(roles),
    }
    reply = await scene.operator.call("POST", f"database/config/{DATABASE}", connection)
    await screen.done(f"{reply.status}  the broker can log in to '{DATABASE}'")


async def write_role(scene: Scene, *, lease_s: int, name: str = ROLE, extra: Mapping[str, Any] | None = None) -> int:
    """Writes a role with leases of `lease_s` seconds; answers the HTTP status."""
    times = {"default_ttl": lease_s, "max_ttl": max(60, 6 * lease_s)}
    fields = {"db_name": DATABASE, "grant_roles": [GROUP], **times, **(extra or {})}
    return (await scene.operator.call("POST", f"database/roles/{name}", fields)).status


async def leave_nothing(scene: Scene, screen: Screen) -> None:
    """Ends every lease that there is, and shows that no role is left in the database."""
    screen.part("Nothing stays behind")
    screen.act("operator", "PUT /v1/sys/leases/revoke-prefix/database")
    reply = await scene.operator.call("PUT", "sys/leases/revoke-prefix/database")
    await screen.done(str(reply.status))
    screen.act("superuser", "looks for users that the broker made in pg_roles")
    left = await scene.leased_users()
    if left:
        raise DemoFailed(f"these users are left in the database: {', '.join(left)}")
    await screen.done("0 rows: no user is left behind")
    screen.act("superuser", "DROP ROLE the helpers that a plain login makes its users with")
    helpers = await scene.dismiss_helpers()
    await screen.done(f"{helpers} helpers are gone, and no role is left behind")


async def wait_until_dropped(scene: Scene, username: str) -> None:
    """Sessions end a moment before the user is dropped. Raises `DemoFailed` when that moment lasts."""
    deadline_s = stopwatch_s() + _DROPPED_WITHIN_S
    while username in await scene.leased_users():
        if stopwatch_s() > deadline_s:
            raise DemoFailed("the user was still in the database long after its sessions had ended")
        await asyncio.sleep(_POLL_S)


async def refusal(attempt: Awaitable[object]) -> str:
    """The database's own words for its refusal. Raises `DemoFailed` when the attempt succeeded."""
    try:
        await attempt
    except asyncpg.PostgresConnectionError as error:
        return f"{error}"
    except asyncpg.PostgresError as error:
        return f"{error.sqlstate}  {error.message if isinstance(error.message, str) else error}"
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        return str(error)
    raise DemoFailed("the database did what it should have refused")
