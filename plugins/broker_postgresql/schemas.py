"""Where a role's own statements find what they name without a schema: in `public` too, unless a stranger could have put it there.

A function in `public` that fits a call better than the catalogue's own is the one that runs, with the rights of our session. So statements
that may call one (a block, a query) find `public` only where nobody but superusers and our login may create in it, and nobody else owns a
function or an operator there. GRANT, CREATE ROLE and their like call nothing, and find it always.
"""

from __future__ import annotations

import re

from broker.clock import stopwatch_s
from broker_postgresql.commands import commands
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

CLOSED = "pg_catalog, pg_temp"
OPEN = "public, pg_temp"
ALWAYS = "*"
"""In place of a version: search it, whatever is there."""
_FRESH_S = 60.0
_CALLS_NOTHING = re.compile(
    r"((CREATE|ALTER|DROP)\s+(ROLE|USER|GROUP)|GRANT|REVOKE|COMMENT\s+ON|(REASSIGN|DROP)\s+OWNED|ALTER\s+DEFAULT\s+PRIVILEGES|(RE)?SET)\s[^;]*",
    re.IGNORECASE,
)
"""Commands that evaluate no expression; what is not told apart for sure (a leading comment, a semicolon inside) is none of them."""
_NOT_FOUND = ("42P01", "42883")
_HINT = "; schema public is not searched, since others than superusers may create there, or did: write public. before the name"

UNCHANGED = """(SELECT n.xmin::pg_catalog.text OPERATOR(pg_catalog.||) '/' OPERATOR(pg_catalog.||) d.xmin::pg_catalog.text
      FROM pg_catalog.pg_namespace n, pg_catalog.pg_database d
      WHERE n.nspname OPERATOR(pg_catalog.=) 'public'::pg_catalog.name
        AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"""
"""The versions of the rows that say who may create in `public`: as long as they are the same, nobody has come to be able to."""


def calls_nothing(statements: str) -> bool:
    """Whether no function and no operator can be looked up while these run."""
    return all(_CALLS_NOTHING.fullmatch(command) for _, command in commands(statements))


async def version(session: Session) -> str:
    """What `UNCHANGED` has to yield for `public` to be searched; empty where it must not be. Raises what the driver raises.

    The catalogue is looked through once a minute; in between, whoever uses the answer compares it with `UNCHANGED`.
    """
    if stopwatch_s() - session.public_seen_s > _FRESH_S:
        rows = await session.rows(QUERIES["public_is_safe"])
        session.public, session.public_seen_s = (rows[0]["version"] if rows else ""), stopwatch_s()
    return session.public


async def changed(session: Session) -> bool:
    """Whether `public` may be searched, in another version than was thought. Raises what the driver raises."""
    before, session.public_seen_s = session.public, float("-inf")
    return await version(session) not in ("", before)


def not_found(sqlstate: str) -> bool:
    """Whether the error may come of `public` not having been searched."""
    return sqlstate in _NOT_FOUND


def hint(session: Session, sqlstate: str) -> str:
    """What to add to an error of statements that did not find something; empty for any other."""
    return _HINT if not_found(sqlstate) and not session.public else ""
