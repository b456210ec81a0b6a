"""Finding and ending sessions of roles that are no more: logins that hid until their user was gone, sessions that a failover let live."""

from __future__ import annotations

from datetime import datetime

from broker.engines.protocol import Origin, Swept
from broker.errors import EngineError, UserRemains
from broker_postgresql import sessions
from broker_postgresql.connector import application_name
from broker_postgresql.late import starting_with
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session

_STILL_OPEN = "sessions of a user that is no more go on; they were told to end"
_POWERLESS = "the broker's login may not end sessions of users that are no more, should one slip through"
_TWIN = (
    "another broker with a copy of this one's store works here, too (from {hosts}): each takes the users of both for its own, and"
    " ends what the other made; stop one of them"
)


async def twins(session: Session, origin: Origin, since: datetime) -> list[Swept]:
    """Says so where another process of this broker has connected after `since`, by the server's clock, when this one had begun.

    Raises what the driver raises.
    """
    patterns = (starting_with(f"broker/{origin.broker}/"), application_name(origin))
    rows = await session.rows(QUERIES["twins"], *patterns, since)
    return [Swept(error=EngineError(_TWIN.format(hosts=", ".join(row["host"] for row in rows))))] if rows else []


async def sweep(session: Session, place: str = "") -> list[Swept]:
    """Ends such sessions on one server, named `place`; says, found or not, when our login may not. Raises what the driver raises."""
    able = session.greeting.superuser or session.greeting.signals
    counts = await _look(session)
    left = await sessions.end(session, list(counts)) if counts else {}
    found = [
        Swept(
            identity=str(oid),
            sessions=left.get(oid, count),
            place=place,
            error=_error(session, able=able) if oid in left else None,
        )
        for oid, count in counts.items()
    ]
    return found if able or left else [*found, Swept(place=place, error=_error(session, able=False))]


async def abandoned(session: Session, place: str = "") -> list[Swept]:
    """Such sessions on one server, named `place`, left as they are. Raises what the driver raises."""
    return [Swept(identity=str(oid), sessions=count, place=place) for oid, count in (await _look(session)).items()]


async def _look(session: Session) -> dict[int, int]:
    """How many sessions each role has that is no more."""
    suspects = {row["oid"] for row in await session.rows(QUERIES["abandoned"])}
    # Whoever is found again was no user made and logged in while the first query ran.
    again = await session.rows(QUERIES["abandoned"]) if suspects else []
    return {row["oid"]: row["sessions"] for row in again if row["oid"] in suspects}


def _error(session: Session, *, able: bool) -> EngineError:
    if able:
        return UserRemains(_STILL_OPEN)
    return UserRemains(_POWERLESS, remedy=(f"GRANT pg_signal_backend TO {identifier(session.greeting.login)}",))
