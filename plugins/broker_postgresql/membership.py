"""Our own membership in users, which a plain CREATEROLE login needs to end their sessions and to clean up after them."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker_postgresql.batch import in_halves
from broker_postgresql.identity import Present
from broker_postgresql.quoting import identifier, identifiers
from broker_postgresql.session import Session


async def join(session: Session, users: Sequence[Present]) -> None:
    """Makes our login a member of the users, with all that it needs; nothing to do for a superuser.

    Where the server refuses, what needed the membership will fail and say so. The membership goes when the user is dropped.
    """
    if session.greeting.superuser:
        return
    options = " WITH INHERIT TRUE, SET TRUE" if session.greeting.inherits_by_grant else ""

    async def act(batch: Sequence[Present]) -> None:
        await session.run(f"GRANT {identifiers([one.name for one in batch])} TO {identifier(session.greeting.login)}{options}")

    async def fail(_one: Present, _error: asyncpg.PostgresError) -> None:
        return

    await in_halves(users, act, fail)
