"""A batch of which one user left something that can't be read: the others don't wait for it.

Names come from wherever a user could connect to, and a database without an encoding takes any bytes for one. The query that meets such a
name fails as a whole, for all users that it asked about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from broker.engines.protocol import Outcome, User
from broker.errors import EngineError, UserRemains
from broker_postgresql import stripped, ties
from broker_postgresql.dependencies import keeper
from broker_postgresql.failures import Unreadable
from broker_postgresql.identity import Present, Results, ours
from broker_postgresql.lanes import Lane
from broker_postgresql.quoting import comment, identifier

_WHERE = comment("in each database where the user left anything")


async def apart(lane: Lane, users: Sequence[User], work: Callable[[Sequence[User]], Awaitable[list[Outcome]]]) -> list[Outcome]:
    """What `work` answers for these users, in halves where it can't read something; who is left alone with that keeps no rights.

    Raises what `work` raises for another reason.
    """
    try:
        return await work(users)
    except Unreadable as error:
        if len(users) == 1:
            return await _alone(lane, users[0], error)
    middle = len(users) // 2
    return [*await apart(lane, users[:middle], work), *await apart(lane, users[middle:], work)]


async def _alone(lane: Lane, user: User, error: Unreadable) -> list[Outcome]:
    results = Results([user])
    # It may be the rights in the home database that can't be read; the memberships go before these.
    with contextlib.suppress(EngineError):
        async with lane.session() as session:
            present = await ours(session, [user])
            results.identified(present)
            results.fail(user, UserRemains(str(error), remedy=[text for one in present for text in _by_hand(one)]))
            await stripped.strip(session, present, results)
    results.fail(user, error)
    return results.outcomes()


def _by_hand(one: Present) -> tuple[str, ...]:
    """Names nothing but the user and who gets what it left."""
    name, heir = identifier(one.name), keeper(one)
    return (
        f"{_WHERE} {ties.by_itself(one.oid)}",
        f"CREATE ROLE {heir} NOLOGIN;",
        f"{_WHERE} REASSIGN OWNED BY {name} TO {heir}; DROP OWNED BY {name};",
    )
