"""Prepared transactions of users (two-phase commit): they would outlive their users, or keep them from being dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from broker.engines.protocol import User
from broker.errors import EngineError, UserRemains
from broker_postgresql import doors
from broker_postgresql.failures import first_line
from broker_postgresql.identity import Present, Results, ours
from broker_postgresql.lanes import Lane
from broker_postgresql.membership import join
from broker_postgresql.obstacles import rolled_back
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, octets
from broker_postgresql.session import Session


@dataclass(frozen=True, slots=True)
class Transaction:
    """One that waits to be finished, from its own database only."""

    one: Present
    gid: bytes
    database: str


async def find(session: Session, users: Sequence[Present]) -> list[Transaction]:
    """The prepared transactions of these users."""
    by_name = {one.name: one for one in users}
    rows = await session.rows(QUERIES["prepared_transactions"], list(by_name))
    return [Transaction(by_name[row["owner"]], row["gid"], row["database"]) for row in rows]


async def clear_the_way(lane: Lane, users: Sequence[User]) -> bool:
    """Rolls back what the users prepared, and what else keeps their roles locked as far as it can be told.

    A transaction that changed its own role and was prepared keeps that role from being changed, also when the user's sessions are
    gone; prepared under SET ROLE it belongs to the group. What stays shows in what is blocked by it. Answers whether there was any.
    """
    async with lane.session() as session:
        present = await ours(session, users)
        transactions = await find(session, present)
        await join(session, [transaction.one for transaction in transactions])
        if session.greeting.superuser:
            by_oid = {one.oid: one for one in present}
            held = await session.rows(QUERIES["holders_of_roles"], list(by_oid))
            own = {transaction.gid for transaction in transactions}
            transactions += [
                Transaction(by_oid[row["oid"]], row["gid"], row["database"]) for row in held if row["gid"] not in own
            ]
    await roll_back(lane, transactions, Results(users))
    return bool(transactions)


async def roll_back(lane: Lane, transactions: Sequence[Transaction], results: Results) -> None:
    """Rolls them back, as their owner where we are no superuser; one that stays fails its user."""
    for database in sorted({transaction.database for transaction in transactions}):
        await _visit(lane, database, [one for one in transactions if one.database == database], results)


async def _visit(lane: Lane, database: str, transactions: Sequence[Transaction], results: Results) -> None:
    try:
        async with lane.visit(database) as session:
            for transaction in transactions:
                await _roll_back_one(session, transaction, results)
    except EngineError as error:
        # Not taken for an unavailable server: its owner may have closed the one database.
        key = await doors.key(lane, database)
        for transaction in transactions:
            text = f"a prepared transaction stays, and database {database} can't be visited: {error}"
            results.fail(transaction.one.user, UserRemains(text, remedy=(*key, rolled_back(transaction.gid, database))))


async def _roll_back_one(session: Session, transaction: Transaction, results: Results) -> None:
    statement = f"ROLLBACK PREPARED {octets(transaction.gid)}"
    try:
        # It runs outside of transactions only, so the role is set and reset around it; the visit ends here either way.
        if not session.greeting.superuser:
            await session.run(f"SET ROLE {identifier(transaction.one.name)}")
        await session.run(statement)
        if not session.greeting.superuser:
            await session.run("RESET ROLE")
    except asyncpg.PostgresError as error:
        remedy = rolled_back(transaction.gid, transaction.database)
        results.fail(transaction.one.user, UserRemains(f"a prepared transaction stays: {first_line(error)}", remedy=(remedy,)))
