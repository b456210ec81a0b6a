"""Stage 3 of a revocation: what users own is handed over, destroyed or kept as their terms say; what was granted is revoked.

REASSIGN OWNED and DROP OWNED act on the current database and on shared objects, so every database with dependencies is visited: first
for all who own little, then for those who own much, one by one and for a limited time, so that these hold nobody up.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from broker.clock import stopwatch_s
from broker.engines.protocol import Outcome, User
from broker.errors import EngineError, InstructionsFailed, UserRemains, WorkContinues
from broker_postgresql import bulk, dependencies, doors, handover, heirs, obstacles, passed_on, prepared, stripped, ties
from broker_postgresql.batch import Patience, attempt, from_anywhere, in_halves, patiently
from broker_postgresql.bulk import Pace
from broker_postgresql.creation import filled
from broker_postgresql.dependencies import Dependency
from broker_postgresql.failures import Unreadable, first_line
from broker_postgresql.identity import Present, Results, ours, with_makers
from broker_postgresql.issue import lacks_rights
from broker_postgresql.lanes import Lane
from broker_postgresql.membership import join
from broker_postgresql.orders import Done, Order, run_orders
from broker_postgresql.quoting import identifier, identifiers
from broker_postgresql.session import Session
from broker_postgresql.terms import options_of

_CONTAINED = "the user owns objects, and its role does not say what becomes of them (owned_objects); it is kept without login"
_OUT_OF_LOCKS = "53200"
_TIED = "2BP01"
"""Others' objects depend on what was to be dropped."""
_ALONE_S = 60.0
_AMONG_OTHERS_S = 5.0
"""How long users that own much may take in one call; the others of the batch wait for them."""


async def release(lane: Lane, users: Sequence[User]) -> list[Outcome]:
    """Frees the users of everything that would keep them from being dropped."""
    results = Results(users)
    async with lane.session() as session:
        home, login = session.greeting.database, session.greeting.login
        present = await ours(session, users)
        results.identified(present)
        await passed_on.take_back_memberships(session, present, results)
        await _run_own_statements(session, present, results)
        if any(user.terms.revocation for user in users):
            present = await ours(session, [one.user for one in present if not results.failed(one.user)])
        found = await dependencies.find(session, present)
        transactions = await prepared.find(session, present)
        bound = {dependency.oid for dependency in found} | {transaction.one.oid for transaction in transactions}
        await join(session, [one for one in present if one.oid in bound])
        _contain(present, found, results, home)
    # First, since they hold locks on what is to be handed over or dropped.
    await prepared.roll_back(lane, transactions, results)
    work = _Work(lane, home, login, found, results)
    limit_s = _ALONE_S if len(present) == 1 else _AMONG_OTHERS_S
    for heavy in (False, True):
        await work.free([one for one in present if (one.oid in work.heavy) is heavy], limit_s)
    if found or any(results.remains(one.user) for one in present):
        async with lane.session() as session:
            if found:
                await _report_rest(session, present, results)
            await stripped.strip(session, [one for one in present if results.remains(one.user)], results)
    return results.outcomes()


async def remedies(session: Session, users: Sequence[Present]) -> dict[int, tuple[str, ...]]:
    """By OID, what would let each user be dropped."""
    found = await dependencies.find(session, users)
    return {one.oid: dependencies.remedies(one, found, session.greeting.database) for one in users}


async def _run_own_statements(session: Session, present: Sequence[Present], results: Results) -> None:
    """Runs the revocation statements of those whose terms have some. Our login, and who made a user, have its rights by then."""
    some = [one for one in present if one.user.terms.revocation]
    await join(session, some)
    for one in await with_makers(session, some):
        try:
            done = await _run_as_maker(session, one)
        except EngineError as error:
            results.fail(one.user, error)
            continue
        if done.sqlstate:
            results.fail(one.user, InstructionsFailed(f"revocation_statements failed and were undone: {done.message}"))
    await session.act_as("")


async def _run_as_maker(session: Session, one: Present) -> Done:
    """Runs the user's own statements as its maker, and as our login where that has not the right.

    Our login may drop the user too, but the server looks through all live users to find out that it may.
    """
    statements = filled(one.user.terms.revocation, name=one.name, username=one.name)
    order = Order(name=one.name, oid=one.oid, statements=statements)

    async def equip(_: Sequence[Present]) -> None:
        await session.run_as(
            [(one.maker, f"GRANT {identifier(one.name)} TO {identifier(one.maker)} WITH INHERIT TRUE, SET FALSE")]
        )

    equipped = bool(one.maker) and await attempt([one], equip) is None
    for maker in (one.maker, "") if equipped else ("",):
        await session.act_as(maker)
        [done] = await run_orders(session, [order])
        # What was granted by others is revoked by others only, which is a mere warning, and the statements stand.
        if not lacks_rights(done) or (done.warnings and not await ours(session, [one.user])):
            break
    return done


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


class _Work:
    """What is to be done for users, database by database."""

    def __init__(self, lane: Lane, home: str, login: str, found: Sequence[Dependency], results: Results) -> None:
        self.heavy = {dependency.oid for dependency in found if dependency.owned and dependency.count > bulk.SLICE}
        """By OID, who owns more than is done in one go."""
        self._coders = {dependency.oid for dependency in found if dependency.code}
        self._lane = lane
        self._home = home
        self._login = login
        self._found = found
        self._results = results
        self._pace = Pace(stopwatch_s())
        self._patience = Patience()

    async def free(self, users: Sequence[Present], limit_s: float) -> None:
        """Does for these users, in every database, what their terms say; those who own much go on for the time given."""
        self._pace = Pace(stopwatch_s() + limit_s)
        able = {one.oid: one for one in users if not self._results.failed(one.user)}
        where = {(one.database or self._home, one.oid) for one in self._found if one.oid in able}
        for database in sorted({database for database, _ in where}, key=lambda name: (name != self._home, name)):
            await self._free_in(database, [able[oid] for name, oid in sorted(where) if name == database])

    async def _free_in(self, database: str, some: Sequence[Present]) -> None:
        if database == self._home:
            async with self._lane.session() as session:
                await self._free(session, some)
            return
        try:
            async with self._lane.visit(database) as session:
                await self._free(session, some)
        except EngineError as error:
            if isinstance(error, Unreadable) and len(some) > 1:
                raise
            # Not taken for an unavailable server: whoever has nothing in that one database goes on.
            key = await doors.key(self._lane, database)
            for one in some:
                theirs = [each for each in self._found if each.database == database]
                remedy = (*key, *dependencies.remedies(one, theirs, database))
                self._results.fail(one.user, UserRemains(f"database {database} can't be visited: {error}", remedy=remedy))

    async def _free(self, session: Session, some: Sequence[Present]) -> None:
        """Does in one database what is to be done: those with nothing but grants together, owners one by one."""
        here = (session.greeting.database, "")
        owned = {each.oid: each.count for each in self._found if each.owned and each.database in here}

        async def revoke(batch: Sequence[Present]) -> None:
            # Two batches that revoke on the same object at once would fail each other (XX000).
            async with self._lane.turn():
                await session.run(f"DROP OWNED BY {identifiers([one.name for one in batch])}")

        async def fail(one: Present, error: asyncpg.PostgresError) -> None:
            await self._remains(session, one, error)

        await passed_on.take_back(session, some, self._results)
        await in_halves([one for one in some if one.oid not in owned], revoke, fail, self._patience)
        for one in from_anywhere([one for one in some if one.oid in owned]):
            try:
                await self._part(session, one, owned[one.oid])
            except UserRemains as error:
                self._results.fail(one.user, error)

    async def _part(self, session: Session, one: Present, count: int) -> None:
        """Hands over or drops what one user owns in the session's database. Raises `UserRemains`."""
        options, name = options_of(one.user.terms), identifier(one.name)
        drops = f"DROP OWNED BY {name}"
        how: bulk.How = bulk.dropping
        if options.owned_objects == "reassign":
            heir = await handover.prepare(session, one, options, self._pace)
            drops, how = f"REASSIGN OWNED BY {name} TO {heir}; {drops}", bulk.moving(heir)
        elif one.oid in self._coders or count > bulk.SLICE:
            await ties.cut(session, one.oid, self._pace)

        async def act(_: Sequence[Present]) -> None:
            await session.run(drops)

        error = await patiently([one], act, self._patience) if count <= bulk.SLICE else None
        if error and error.sqlstate == _TIED and options.owned_objects == "drop":
            # The look for triggers takes long. Who owns no function may have tied one by its condition alone, and that shows only here.
            await ties.cut(session, one.oid, self._pace)
            error = await patiently([one], act, self._patience)
        if count > bulk.SLICE or (error and error.sqlstate == _OUT_OF_LOCKS):
            await self._by_the_slice(session, one, how)
            error = await patiently([one], act, self._patience)
        if error:
            await self._remains(session, one, error)

    async def _by_the_slice(self, session: Session, one: Present, how: bulk.How) -> None:
        loose = "foreign_keys" if how is bulk.dropping else "policies"
        try:
            await bulk.run_each(session, loose, one.oid, self._pace)
            await bulk.work_off(session, one.oid, how, self._pace)
        except UserRemains as error:
            # Being refused object by object takes long, too.
            if isinstance(error, WorkContinues) or not (grants := await heirs.grants(session, one)):
                raise
            raise UserRemains(str(error), remedy=grants) from None

    async def _remains(self, session: Session, one: Present, error: asyncpg.PostgresError) -> None:
        here = session.greeting.database
        way_out = await heirs.way_out(session, one, error) or dependencies.remedies(one, self._found, here)
        remedy = (*await obstacles.holders(session, one, error), *way_out)
        self._results.fail(one.user, UserRemains(f"{here}: {first_line(error)}", remedy=remedy))


async def _report_rest(session: Session, present: Sequence[Present], results: Results) -> None:
    """What is still there after all was done: grants of others that only they can revoke, or shared objects."""
    rest = await dependencies.find(session, present)
    left = {dependency.oid for dependency in rest}
    for one in present:
        if one.oid in left:
            what = "objects or rights of the user remain that the broker's login can't remove"
            results.fail(one.user, UserRemains(what, remedy=dependencies.remedies(one, rest, session.greeting.database)))
