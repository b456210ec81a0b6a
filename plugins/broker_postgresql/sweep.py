"""Ending sessions of roles that are no more: a login that hid until after its user was gone, a session that a failover let live."""

from __future__ import annotations

from broker.engines.protocol import Swept
from broker.errors import EngineError, UserRemains
from broker_postgresql import sessions
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session

_STILL_OPEN = "sessions of a user that is no more go on; they were told to end"
_POWERLESS = "the broker's login may not end sessions of users that are no more, should one slip through"


async def sweep(session: Session, place: str = "") -> list[Swept]:
    """Ends such sessions on one server, named `place`; says, found or not, when our login may not. Raises what the driver raises."""
    able = session.greeting.superuser or session.greeting.signals
    rows = await session.rows(QUERIES["abandoned"])
    # Whoever is found again was no user made and logged in while the first query ran.
    suspects = {row["oid"] for row in rows}
    rows = [row for row in await session.rows(QUERIES["abandoned"]) if row["oid"] in suspects] if rows else []
    left = await sessions.end(session, [row["oid"] for row in rows]) if rows else {}
    found = [
        Swept(
            identity=str(row["oid"]),
            sessions=left.get(row["oid"], row["sessions"]),
            place=place,
            error=_error(session, able=able) if row["oid"] in left else None,
        )
        for row in rows
    ]
    return found if able or left else [*found, Swept(place=place, error=_error(session, able=False))]


def _error(session: Session, *, able: bool) -> EngineError:
    if able:
        return UserRemains(_STILL_OPEN)
    return UserRemains(_POWERLESS, remedy=(f"GRANT pg_signal_backend TO {identifier(session.greeting.login)}",))
