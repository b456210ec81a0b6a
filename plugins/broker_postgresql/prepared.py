"""Prepared transactions of users (two-phase commit): they would outlive their users, or keep them from being dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from broker.errors import EngineError, UserRemains
from broker_postgresql.failures import first_line
from broker_postgresql.identity import Present, Results
from broker_postgresql.lanes import Lane
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, literal
from broker_postgresql.session import Session


@dataclass(frozen=True, slots=True)
class Transaction:
    """One that waits to be finished, from its own database only."""

    one: Present
    gid: str
    database: str


async def find(session: Session, users: Sequence[Present]) -> list[Transaction]:
    """The prepared transactions of these users."""
    by_name = {one.name: one for one in users}
    rows = await session.rows(QUERIES["prepared_transactions"], list(by_name))
    return [Transaction(by_name[row["owner"]], row["gid"], row["database"]) for row in rows]


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
        for transaction in transactions:
            results.fail(transaction.one.user, error)


async def _roll_back_one(session: Session, transaction: Transaction, results: Results) -> None:
    statement = f"ROLLBACK PREPARED {literal(transaction.gid)}"
    try:
        # It runs outside of transactions only, so the role is set and reset around it; the visit ends here either way.
        if not session.greeting.superuser:
            await session.run(f"SET ROLE {identifier(transaction.one.name)}")
        await session.run(statement)
        if not session.greeting.superuser:
            await session.run("RESET ROLE")
    except asyncpg.PostgresError as error:
        remedy = f"/* in database {identifier(transaction.database)} */ {statement}"
        results.fail(transaction.one.user, UserRemains(f"a prepared transaction stays: {first_line(error)}", remedy=(remedy,)))
