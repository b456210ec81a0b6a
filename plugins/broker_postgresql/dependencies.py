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


def remedies(one: Present, dependencies: Iterable[Dependency], home: str) -> tuple[str, ...]:
    """Statements, one for each database, that whoever owns or granted the objects may run to let the user be dropped."""
    by_database: dict[str, list[Dependency]] = {}
    for dependency in dependencies:
        if dependency.oid == one.oid:
            by_database.setdefault(dependency.database or home, []).append(dependency)
    found = sorted(by_database.items())
    # One role for all databases, made in the first of them.
    first = next((database for database, there in found if any(each.owned for each in there)), None)
    return tuple(_remedy(one, database, there, makes_keeper=database == first) for database, there in found)


def _remedy(one: Present, database: str, found: Sequence[Dependency], *, makes_keeper: bool) -> str:
    name = identifier(one.name)
    count, known = sum(each.count for each in found), sorted({named for each in found for named in each.objects})
    more = [f"and {count - _NAMED_AT_MOST} more"] if count > _NAMED_AT_MOST else []
    described = ", ".join(known[:_NAMED_AT_MOST] + more) if known else f"{count} objects"
    hand_over = f"REASSIGN OWNED BY {name} TO {keeper(one)}; " if any(each.owned for each in found) else ""
    if makes_keeper:
        hand_over = f"CREATE ROLE {keeper(one)} NOLOGIN; {hand_over}"
    return f"{comment(f'in database {identifier(database)}: {described}')} {hand_over}DROP OWNED BY {name};"


def keeper(one: Present) -> str:
    """A role to be made for what the user owns. Whoever runs the remedy must not own it: views and functions have their owner's rights."""
    return identifier(f"left_over_{one.oid}")
