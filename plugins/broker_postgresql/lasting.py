"""What users of a role could make that outlives any lease, beyond roles (see `offspring`): told when the role is written.

Whoever may become a role by SET ROLE may change that role's password; if it can log in, that is a login for ever. Who may run programs on
the server, or write files there, does so as the account that the server runs as (PostgreSQL manual, "Predefined Roles").
"""

from __future__ import annotations

from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_LOGINS = (
    "creation_statements, grant_roles: users of this role could become {roles}, which can log in, and set a password for that, which"
    " outlives their leases. Let them join a group without login, which has the rights that they need"
)
_SERVER = (
    "creation_statements, grant_roles: users of this role could leave programs or files on the server ({roles}), as the account that it"
    " runs as; no revocation finds those, and by them they could make themselves superusers"
)


async def doubts(session: Session, oid: int) -> list[str]:
    """Why leases of this user's role may leave access behind, in sentences; the user is there. Raises what the driver raises."""
    rows = await session.rows(QUERIES["lasting"], oid)
    logins = [row["name"] for row in rows if row["login"]]
    server = [row["name"] for row in rows if not row["login"]]
    return [text.format(roles=", ".join(names)) for text, names in ((_LOGINS, logins), (_SERVER, server)) if names]
