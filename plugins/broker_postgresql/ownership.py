"""Stage 3 of a revocation: what users own is handed over, destroyed or kept as their terms say; what was granted is revoked.

REASSIGN OWNED and DROP OWNED act on the current database and on shared objects, so every database with dependencies is visited.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.engines.protocol import Outcome, User
from broker.errors import EngineError, InstructionsFailed, UserRemains
from broker_postgresql import dependencies, prepared
from broker_postgresql.batch import in_halves
from broker_postgresql.creation import filled
from broker_postgresql.dependencies import Dependency
from broker_postgresql.failures import first_line
from broker_postgresql.identity import Present, Results, ours
from broker_postgresql.lanes import Lane
from broker_postgresql.membership import join
from broker_postgresql.orders import ADVISORY_KEY, Order, run_orders
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, identifiers
from broker_postgresql.session import Session
from broker_postgresql.terms import RoleOptions, options_of

_CONTAINED = "the user owns objects, and its role does not say what becomes of them (owned_objects); it is kept without login"
_UNSAFE = (
    "the user could not act as {heir} itself and owns code that would then run with the rights of {heir}: {code}. Drop it, or"
    " let the role's users join {heir}"
)


async def release(lane: Lane, users: Sequence[User]) -> list[Outcome]:
    """Frees the users of everything that would keep them from being dropped."""
    results = Results(users)
    async with lane.session() as session:
        home, login = session.greeting.database, session.greeting.login
        present = await ours(session, users)
        results.identified(present)
        await _run_own_statements(session, present, results)
        if any(user.terms.revocation for user in users):
            present = await ours(session, [one.user for one in present if not results.failed(one.user)])
        found = await dependencies.find(session, present)
        transactions = await prepared.find(session, present)
        bound = {dependency.oid for dependency in found} | {transaction.one.oid for transaction in transactions}
        await join(session, [one for one in present if one.oid in bound])
        if not session.greeting.inherits_by_grant:
            await _revoke_memberships(session, present, results)
        _contain(present, found, results, home)
        todo = _by_database(present, found, results, home)
        if home in todo:
            await _free(session, todo.pop(home), found, results)
    for database, some in todo.items():
        await _visit(lane, login, database, some, found, results)
    await prepared.roll_back(lane, transactions, results)
    if found:
        async with lane.session() as session:
            await _report_rest(session, present, results)
    return results.outcomes()


async def _visit(
    lane: Lane, login: str, database: str, some: Sequence[Present], found: Sequence[Dependency], results: Results
) -> None:
    try:
        async with lane.visit(database) as session:
            await _free(session, some, found, results)
    except EngineError as error:
        # Not taken for an unavailable server: whoever has nothing in that one database goes on.
        connect = f"GRANT CONNECT ON DATABASE {identifier(database)} TO {identifier(login)}"
        for one in some:
            remedy = (connect, *dependencies.remedies(one, [each for each in found if each.database == database], database))
            results.fail(one.user, UserRemains(f"database {database} can't be visited: {error}", remedy=remedy))


async def remedies(session: Session, users: Sequence[Present]) -> dict[int, tuple[str, ...]]:
    """By OID, what would let each user be dropped."""
    found = await dependencies.find(session, users)
    return {one.oid: dependencies.remedies(one, found, session.greeting.database) for one in users}


async def _run_own_statements(session: Session, present: Sequence[Present], results: Results) -> None:
    for one in present:
        terms = one.user.terms
        if not terms.revocation:
            continue
        try:
            statements = filled(terms.revocation, name=one.name, username=one.name)
            [done] = await run_orders(session, [Order(name=one.name, oid=one.oid, statements=statements)], serial=False)
        except EngineError as error:
            results.fail(one.user, error)
            continue
        if done.sqlstate:
            results.fail(one.user, InstructionsFailed(f"revocation_statements failed and were undone: {done.message}"))


async def _revoke_memberships(session: Session, present: Sequence[Present], results: Results) -> None:
    """Up to version 15, memberships that a user granted would stay, with a grantor that is no more."""
    rows = await session.rows(QUERIES["granted_memberships"], [one.oid for one in present])
    by_oid = {one.oid: one for one in present}
    for row in rows:
        try:
            await session.run(f"REVOKE {identifier(row['role'])} FROM {identifier(row['member'])}")
        except asyncpg.InsufficientPrivilegeError as error:
            results.fail(by_oid[row["oid"]].user, UserRemains(f"a membership that the user granted stays: {first_line(error)}"))


def _contain(present: Sequence[Present], found: Sequence[Dependency], results: Results, home: str) -> None:
    """Fails those whose terms forbid what would have to be done; nothing of theirs is touched."""
    owners = {dependency.oid for dependency in found if dependency.owned}
    for one in present:
        try:
            options = options_of(one.user.terms)
        except EngineError as error:
            results.fail(one.user, error)
            continue
        if one.oid in owners and options.owned_objects == "contain":
            results.fail(one.user, UserRemains(_CONTAINED, remedy=dependencies.remedies(one, found, home)))


def _by_database(
    present: Sequence[Present], found: Sequence[Dependency], results: Results, home: str
) -> dict[str, list[Present]]:
    """In which databases something is to be done, and for whom."""
    where = {(dependency.database or home, dependency.oid) for dependency in found}
    able = {one.oid: one for one in present if not results.failed(one.user)}
    databases: dict[str, list[Present]] = {}
    for database, oid in sorted(where):
        if oid in able:
            databases.setdefault(database, []).append(able[oid])
    return databases


async def _free(session: Session, some: Sequence[Present], found: Sequence[Dependency], results: Results) -> None:
    """Does in one database what the users' terms say: those with nothing but grants together, owners one by one."""
    here = (session.greeting.database, "")
    owners = {dependency.oid for dependency in found if dependency.owned and dependency.database in here}

    async def revoke(batch: Sequence[Present]) -> None:
        # Two batches that revoke on the same object at once would fail each other (XX000); the lock goes with the transaction.
        names = identifiers([one.name for one in batch])
        await session.run(f"SELECT pg_catalog.pg_advisory_xact_lock({ADVISORY_KEY}); DROP OWNED BY {names}")

    async def hand_over(batch: Sequence[Present]) -> None:
        for one in batch:
            heir = identifier(options_of(one.user.terms).reassign_to)
            name = identifier(one.name)
            await session.run(f"REASSIGN OWNED BY {name} TO {heir}; DROP OWNED BY {name}")

    async def fail(one: Present, error: asyncpg.PostgresError) -> None:
        results.fail(
            one.user, UserRemains(f"{session.greeting.database}: {first_line(error)}", remedy=_remedy(one, found, session))
        )

    await in_halves([one for one in some if one.oid not in owners], revoke, fail)
    for one in some:
        if one.oid not in owners:
            continue
        options = options_of(one.user.terms)
        if options.owned_objects == "drop":
            await in_halves([one], revoke, fail)
        elif await _safe_heir(session, one, options, results):
            await in_halves([one], hand_over, fail)


async def _safe_heir(session: Session, one: Present, options: RoleOptions, results: Results) -> bool:
    """Whether handing over gives the user's code no rights that the user did not have itself; fails the user otherwise."""
    heir = options.reassign_to
    answers = await session.rows(QUERIES["is_member"], one.oid, heir)
    if not answers:
        results.fail(
            one.user, UserRemains(f"reassign_to: there is no role {heir}", remedy=(f"CREATE ROLE {identifier(heir)} NOLOGIN",))
        )
        return False
    code = [] if answers[0][0] else await session.rows(QUERIES["owned_code"], one.oid)
    if code:
        text = _UNSAFE.format(heir=heir, code=", ".join(row["object"] for row in code))
        results.fail(one.user, UserRemains(text))
    return not code


def _remedy(one: Present, found: Sequence[Dependency], session: Session) -> tuple[str, ...]:
    return dependencies.remedies(one, found, session.greeting.database)


async def _report_rest(session: Session, present: Sequence[Present], results: Results) -> None:
    """What is still there after all was done: grants of others that only they can revoke, or shared objects."""
    rest = await dependencies.find(session, present)
    left = {dependency.oid for dependency in rest}
    for one in present:
        if one.oid in left:
            what = "objects or rights of the user remain that the broker's login can't remove"
            results.fail(one.user, UserRemains(what, remedy=_remedy(one, rest, session)))
