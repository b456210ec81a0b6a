"""Our own membership in users, which a plain CREATEROLE login needs to end their sessions and to clean up after them."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker_postgresql.acting import run_as_each
from broker_postgresql.batch import in_halves
from broker_postgresql.identity import Present, by_maker, with_makers
from broker_postgresql.quoting import identifier, identifiers
from broker_postgresql.session import Session


async def join(session: Session, users: Sequence[Present]) -> None:
    """Makes our login a member of the users, with all that it needs; nothing to do for a superuser.

    Where the server refuses, what needed the membership will fail and say so. The membership goes when the user is dropped.
    """
    if session.greeting.superuser:
        return

    async def act(batch: Sequence[Present]) -> None:
        await run_as_each(session, {maker: _grant(some, session) for maker, some in by_maker(batch).items()})

    async def fail(_one: Present, _error: asyncpg.PostgresError) -> None:
        return

    await in_halves(await with_makers(session, users), act, fail)


def _grant(users: Sequence[Present], session: Session) -> str:
    options = " WITH INHERIT TRUE, SET TRUE" if session.greeting.inherits_by_grant else ""
    return f"GRANT {identifiers([one.name for one in users])} TO {identifier(session.greeting.login)}{options}"
