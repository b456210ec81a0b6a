"""Rights on single columns that users passed on by a grant option on the whole table.

DROP OWNED takes back what was passed on of the table, and of a column where the option was on that column; these it leaves, and with them
the user can't be dropped. No REVOKE of the table's owner reaches them, who did not grant them. So the user itself takes them back while it
has the option. Where it lost that before, it is given the option on the column once more, which is revoked with all that came of it:
whoever owns the table can do that.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import UserRemains
from broker_postgresql.batch import attempt
from broker_postgresql.identity import Present, Results
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


async def _try(session: Session, statement: str) -> None:
    async def act(_: Sequence[str]) -> None:
        await session.run(statement)

    await attempt([statement], act)
