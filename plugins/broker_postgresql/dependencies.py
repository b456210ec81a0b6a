"""What roles own and were granted, in every database of the cluster, and what to tell whoever has to decide about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from broker_postgresql import ties
from broker_postgresql.identity import Present
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import comment, identifier
from broker_postgresql.session import Session

_NAMED_AT_MOST = 5
_AT_ONCE = 500
"""Objects that REASSIGN OWNED is trusted with: it takes all its locks at once, of which a server has some thousand as it is delivered."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """What keeps a role from being dropped: all that it owns in one database, or all else that is there."""

    oid: int
    database: str
    """Where it is; empty for what all databases share."""
    owned: bool
    """Whether dropping it would destroy something."""
    code: bool
    """Whether functions are among it."""
    count: int
    objects: Sequence[str]
    """Some of it, described; none where it is in another database."""
    ties: Sequence[str] | None = None
    """What unties its code from others' tables (see `ties`), where that is known."""


async def find(session: Session, users: Sequence[Present]) -> list[Dependency]:
    """Everything that keeps these users from being dropped, at most two for each user and database, however much there is."""
    if not users:
        return []
    found = [Dependency(**row) for row in await session.rows(QUERIES["dependencies"], [one.oid for one in users])]
    here = session.greeting.database
    tied = await ties.find(session, [each.oid for each in found if each.code and each.database == here])
    return [replace(each, ties=tied.get(each.oid)) if each.database == here else each for each in found]


def remedies(one: Present, dependencies: Iterable[Dependency], home: str) -> tuple[str, ...]:
    """Statements that whoever owns or granted the objects may run, each in the database it names, to let the user be dropped."""
    by_database: dict[str, list[Dependency]] = {}
    for dependency in dependencies:
        if dependency.oid == one.oid:
            by_database.setdefault(dependency.database or home, []).append(dependency)
    found = sorted(by_database.items())
    # One role for all databases, made in the first of them.
    first = next((database for database, there in found if any(each.owned for each in there)), None)
    return tuple(
        statement for database, there in found for statement in _remedies(one, database, there, makes_keeper=database == first)
    )


def _remedies(one: Present, database: str, found: Sequence[Dependency], *, makes_keeper: bool) -> list[str]:
    name, place = identifier(one.name), f"in database {identifier(database)}"
    count, known = sum(each.count for each in found), sorted({named for each in found for named in each.objects})
    more = [f"and {count - _NAMED_AT_MOST} more"] if count > _NAMED_AT_MOST else []
    described = ", ".join(known[:_NAMED_AT_MOST] + more) if known else f"{count} objects"
    begin, end = f"{comment(f'{place}: {described}')} ", f"DROP OWNED BY {name};"
    if not any(each.owned for each in found):
        return [begin + end]
    untied = _untied(one, place, found)
    if makes_keeper:
        begin += f"CREATE ROLE {keeper(one)} NOLOGIN; "
    end = f"REASSIGN OWNED BY {name} TO {keeper(one)}; {end}"
    if count <= _AT_ONCE:
        return [*untied, begin + end]
    return [*untied, *([begin] if makes_keeper else []), f"{comment(place)} {_one_by_one(one)}", f"{comment(place)} {end}"]


def _untied(one: Present, place: str, found: Sequence[Dependency]) -> list[str]:
    """What comes before the code has another owner: it would go on in the sessions of whoever uses others' tables."""
    statements: list[str] = []
    for each in found:
        if each.code:
            statements += [ties.by_itself(one.oid)] if each.ties is None else [f"{tie};" for tie in each.ties]
    return [f"{comment(place)} {statement}" for statement in statements]


def _one_by_one(one: Present) -> str:
    """Hands over tables in a transaction each; to be run outside of one, as a statement of its own.

    Whoever runs it may have the user's schemas in its path, before the catalogue too: nothing that it names, operators included, may be
    found anywhere but there.
    """
    equals, kinds = "OPERATOR(pg_catalog.=)", "'{r,p,f,v,m}'::pg_catalog.\"char\"[]"
    tables = (
        f"SELECT oid FROM pg_catalog.pg_class WHERE relowner {equals} '{one.oid}'::pg_catalog.oid"  # noqa: S608 - an OID
        f" AND relkind {equals} ANY ({kinds})"
    )
    move = f"EXECUTE pg_catalog.format('ALTER TABLE %s OWNER TO {keeper(one)}', one)"
    return f"DO $$DECLARE one pg_catalog.regclass; BEGIN FOR one IN {tables} LOOP {move}; COMMIT; END LOOP; END$$;"


def keeper(one: Present) -> str:
    """A role to be made for what the user owns. Whoever runs the remedy must not own it: views and functions have their owner's rights."""
    return identifier(f"left_over_{one.oid}")
