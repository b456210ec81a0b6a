"""Rows of revoking: many leases in one call; with nothing, with tables of their own."""

from __future__ import annotations

from broker.bench.calls import Calls
from broker.bench.issuing import Subject
from broker.bench.load import measure
from broker.bench.rows import Row
from broker.bench.service import CROWD, OWNERS
from broker.errors import Unavailable

_CLIENTS = 8


def raw_drop_row(count: int) -> Row:
    """The raw driver dropping users in large transactions."""
    return Row(f"raw driver: DROP ROLE, {count:,} in batches of 256")


def revoke_row(count: int, kind: str, raw_count: int) -> Row:
    """Leases revoked in one call, compared with plain drops of `raw_count` users."""
    return Row(f"broker: revoke {count:,} at once, {kind}", 0, raw_drop_row(raw_count))


async def measure_raw_drops(subject: Subject, count: int) -> None:
    """One round of `raw_drop_row`."""
    subject.results.add(raw_drop_row(count), await subject.database.raw_drops(count))


async def measure_revoke(subject: Subject, count: int) -> None:
    """Users without a session and without anything that they own."""
    await issue(subject.calls, CROWD, count)
    subject.results.add(revoke_row(count, "plain", subject.plan.revoked), await subject.calls.revoke_all(CROWD, count))


async def measure_revoke_with_tables(subject: Subject, count: int) -> None:
    """Users with a table of their own each, which is dropped with them."""
    leases = await issue(subject.calls, OWNERS, count)
    await subject.database.give_tables([username for _, username, _ in leases])
    subject.results.add(revoke_row(count, "a table each", subject.plan.revoked), await subject.calls.revoke_all(OWNERS, count))
    await subject.database.drop_tables()


async def issue(open_calls: Calls, role: str, count: int) -> list[list[str]]:
    """Makes leases; answers lease id, user name and password of each. Raises `Unavailable` when one could not be had."""
    keep = ("lease_id", "username", "password")
    result = await measure(open_calls.address.creds_order(role, clients=_CLIENTS, requests=count, keep=keep))
    if result.figure.errors:
        raise Unavailable(f"leases of {role} could not be made: {result.figure.first_error}")
    return result.kept
