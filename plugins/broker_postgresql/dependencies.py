"""What roles own and were granted, in every database of the cluster, and what to tell whoever has to decide about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session

_NAMED_AT_MOST = 5
_WORTHLESS = frozenset({"pg_default_acl", "pg_user_mapping"})
"""Owned, yet no loss: how future objects would be shared, and how the user logged in elsewhere."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """One row of pg_shdepend: what keeps a role from being dropped."""

    oid: int
    database: str
    """Where it is; empty for what all databases share."""
    kind: str
    """`o` owned, `a` granted, `r` named in a policy, `i` in initial rights."""
    class_name: str
    object: str
    """Its description; empty where it is in another database."""

    @property
    def owned(self) -> bool:
        """Whether dropping it would destroy something."""
        return self.kind == "o" and self.class_name not in _WORTHLESS


async def find(session: Session, users: Sequence[Present]) -> list[Dependency]:
    """Everything that keeps these users from being dropped."""
    if not users:
        return []
    rows = await session.rows(QUERIES["dependencies"], [one.oid for one in users])
    return [Dependency(row["oid"], row["database"], row["kind"], row["class"], row["object"] or "") for row in rows]


def remedies(one: Present, dependencies: Iterable[Dependency], home: str, heir: str = "") -> tuple[str, ...]:
    """Statements, one for each database, that whoever owns or granted the objects may run to let the user be dropped."""
    by_database: dict[str, list[Dependency]] = {}
    for dependency in dependencies:
        if dependency.oid == one.oid:
            by_database.setdefault(dependency.database or home, []).append(dependency)
    return tuple(_remedy(one, database, found, heir) for database, found in sorted(by_database.items()))


def _remedy(one: Present, database: str, found: Sequence[Dependency], heir: str) -> str:
    name = identifier(one.name)
    what = sorted({dependency.object for dependency in found if dependency.object})
    more = [f"and {len(what) - _NAMED_AT_MOST} more"] if len(what) > _NAMED_AT_MOST else []
    described = ", ".join(what[:_NAMED_AT_MOST] + more) or f"{len(found)} objects"
    hand_over = f"REASSIGN OWNED BY {name} TO {heir or 'CURRENT_USER'}; " if any(one.owned for one in found) else ""
    # The comment's end must not come from a name inside it.
    comment = f"in database {identifier(database)}: {described}".replace("*/", "* /").replace("/*", "/ *")
    return f"/* {comment} */ {hand_over}DROP OWNED BY {name};"
