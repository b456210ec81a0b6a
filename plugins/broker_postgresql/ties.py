"""What of users' code is tied to others' tables: it runs in the sessions of whoever uses these, with their rights.

A trigger outlives its maker, since it has no owner, and hands whoever writes into the table to the function, whoever owns that by then. So
what is tied goes first, before the code is dropped or has another owner. The broker itself takes off triggers alone, which is all that a
right on somebody's table lets a user put there; policies, defaults and the like were made as the table's owner, and may be meant to stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from broker_postgresql import bulk
from broker_postgresql.bulk import Pace
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_AT_MOST = 500


async def find(session: Session, oids: Sequence[int]) -> dict[int, list[str]]:
    """By OID of its owner, the statements that untie code in the session's database; those of nobody where they are too many to tell."""
    rows = await session.rows(QUERIES["ties"], oids, _AT_MOST) if oids else []
    found: dict[int, list[str]] = defaultdict(list)
    if len(rows) < _AT_MOST:
        for row in rows:
            found[row["oid"]].append(row["statement"])
        return {oid: found[oid] for oid in oids}
    return {}


async def cut(session: Session, oid: int, pace: Pace) -> None:
    """Drops the triggers on others' tables that run the role's code, as far as our login may. Raises as `Pace.check` does."""
    rows = await session.rows(QUERIES["ties"], [oid], _AT_MOST)
    await bulk.run_all(session, [row["statement"] for row in rows if row["lent"]], pace)


def by_itself(oid: int) -> str:
    """A statement that finds and drops such triggers in the database where it is run, and says which.

    Whoever runs it may have the user's schemas in its path: before it has left that, nothing is named without its schema.
    """
    drop = "SELECT format('DROP TRIGGER %I ON %s', t.tgname, c.oid::regclass)"
    tables = "FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
    others = f"WHERE c.relowner <> {oid} AND NOT t.tgisinternal AND t.tgparentid = 0"
    runs = (
        "EXISTS (SELECT FROM pg_depend d JOIN pg_shdepend o ON o.classid = d.refclassid AND o.objid = d.refobjid"  # noqa: S608 - an OID
        f" WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid AND o.deptype = 'o' AND o.refobjid = {oid}"
        " AND o.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    return (
        "DO $$DECLARE one pg_catalog.text; BEGIN PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);"
        f" FOREACH one IN ARRAY ARRAY({drop} {tables} {others} AND {runs}) LOOP RAISE NOTICE '%', one; EXECUTE one; END LOOP; END$$;"
    )
