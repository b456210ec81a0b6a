"""What users passed on of their rights, where DROP OWNED leaves some of it.

Rights on single columns, passed on by a grant option on the whole table: DROP OWNED takes back what was passed on of the table, and of a
column where the option was on that column; these it leaves, and with them the user can't be dropped. No REVOKE of the table's owner reaches
them, who did not grant them. So the user itself takes them back while it has the option. Where it lost that before, it is given the option
on the column once more, which is revoked with all that came of it: whoever owns the table can do that.

Memberships, passed on by an ADMIN OPTION: DROP OWNED takes back those that the user granted and leaves what came of them, up to version 15
it leaves them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.errors import UserRemains
from broker_postgresql.batch import attempt, in_halves
from broker_postgresql.failures import first_line
from broker_postgresql.identity import Present, Results
from broker_postgresql.membership import join
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier
from broker_postgresql.session import Session

_STAY = "rights on columns that the user passed on can't be taken back by the broker's login, but by the table's owner"


async def take_back(session: Session, users: Sequence[Present], results: Results) -> None:
    """Takes them back in the session's database, before DROP OWNED; fails the users of whom our login can't, with what does.

    One query where nothing was passed on so.
    """
    by_oid = {one.oid: one for one in users}
    left = await session.rows(QUERIES["passed_on"], list(by_oid))
    # A login without the option is not refused: its GRANT does nothing, and only warns. So what is left is looked up each time.
    for way in ("as_user", "as_owner"):
        if not left:
            return
        for row in left:
            await _try(session, row[way])
        left = await session.rows(QUERIES["passed_on"], list(by_oid))
    where = comment(f"in database {identifier(session.greeting.database)}")
    for oid in {row["oid"] for row in left}:
        remedy = [f"{where} {row['as_owner']};" for row in left if row["oid"] == oid]
        results.fail(by_oid[oid].user, UserRemains(_STAY, remedy=remedy))


async def take_back_memberships(session: Session, users: Sequence[Present], results: Results) -> None:
    """Takes back memberships that the users granted, and those that others granted by these alone; fails the users of whom it can't.

    To be done before anything else revokes the first of a chain, after which nothing would tell the rest.
    """
    new = session.greeting.inherits_by_grant
    query = QUERIES["granted_memberships" if new else "granted_memberships_before_16"]
    granted: dict[int, list[str]] = {}
    for row in await session.rows(query, [one.oid for one in users]) if users else []:
        granted.setdefault(row["oid"], []).append(row["statement"])
    some = [one for one in users if one.oid in granted]
    if new:
        await join(session, some)

    async def act(batch: Sequence[Present]) -> None:
        await session.run(";".join(statement for one in batch for statement in granted[one.oid]))

    async def fail(one: Present, error: asyncpg.PostgresError) -> None:
        text = f"memberships that the user granted stay: {first_line(error)}"
        results.fail(one.user, UserRemains(text, remedy=[f"{statement};" for statement in granted[one.oid]]))

    await in_halves(some, act, fail)


async def _try(session: Session, statement: str) -> None:
    async def act(_: Sequence[str]) -> None:
        await session.run(statement)

    await attempt([statement], act)
