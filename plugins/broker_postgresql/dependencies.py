"""What roles own and were granted, in every database of the cluster, and what to tell whoever has to decide about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier
from broker_postgresql.session import Session

_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class Dependency:
    """What keeps a role from being dropped: all that it owns in one database, or all else that is there."""

    oid: int
    database: str
    """Where it is; empty for what all databases share."""
    owned: bool
    """Whether dropping it would destroy something."""
    count: int
    objects: Sequence[str]
    """Some of it, described; none where it is in another database."""


async def find(session: Session, users: Sequence[Present]) -> list[Dependency]:
    """Everything that keeps these users from being dropped, at most two for each user and database, however much there is."""
    if not users:
        return []
    return [Dependency(**row) for row in await session.rows(QUERIES["dependencies"], [one.oid for one in users])]


def remedies(one: Present, dependencies: Iterable[Dependency], home: str, heir: str = "") -> tuple[str, ...]:
    """Statements, one for each database, that whoever owns or granted the objects may run to let the user be dropped."""
    by_database: dict[str, list[Dependency]] = {}
    for dependency in dependencies:
        if dependency.oid == one.oid:
            by_database.setdefault(dependency.database or home, []).append(dependency)
    return tuple(_remedy(one, database, found, heir) for database, found in sorted(by_database.items()))


def _remedy(one: Present, database: str, found: Sequence[Dependency], heir: str) -> str:
    name = identifier(one.name)
    count, known = sum(one.count for one in found), sorted({name for one in found for name in one.objects})
    more = [f"and {count - _NAMED_AT_MOST} more"] if count > _NAMED_AT_MOST else []
    described = ", ".join(known[:_NAMED_AT_MOST] + more) if known else f"{count} objects"
    hand_over = f"REASSIGN OWNED BY {name} TO {heir or 'CURRENT_USER'}; " if any(one.owned for one in found) else ""
    return f"{comment(f'in database {identifier(database)}: {described}')} {hand_over}DROP OWNED BY {name};"
