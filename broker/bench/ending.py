"""Rows of sessions that end: from the request to revoke a lease to the end of its last session, on the primary and on a standby.

A session's end is what its client sees: the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

import asyncpg

from broker.bench.calls import Calls
from broker.bench.figures import Figure
from broker.bench.issuing import Subject
from broker.bench.raw import PgConnection
from broker.bench.revoking import issue, raw_drop_row
from broker.bench.rows import Row
from broker.bench.service import CROWD, WATCHED, write_watched
from broker.clock import stopwatch_s
from broker.errors import Unavailable
from broker.secret import Secret

_LOGINS_AT_ONCE = 8
_CLOSING_S = 2.0
"""How long the end of a session may take to be heard of on this side."""
_REPLAY_LIMIT_S = 60.0
_POLL_S = 0.02
_KNOWN = "SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)"


def batch_row(count: int, raw_count: int) -> Row:
    """Leases with a session each, revoked in one call."""
    return Row(f"broker: revoke {count:,} at once, a session each", 0, raw_drop_row(raw_count))


def singles_row() -> Row:
    """Leases with a session each, revoked one after the other."""
    return Row("broker: revoke one by one, a session each", 1)


def standby_batch_row(count: int, raw_count: int) -> Row:
    """The same as `batch_row`, with a session on the standby, too."""
    label = f"broker: revoke {count:,} at once, a session each and on a standby"
    return Row(label, 0, batch_row(count, raw_count), "primary")


def standby_singles_row() -> Row:
    """The same as `singles_row`, with a session on the standby, too."""
    return Row("broker: revoke one by one, a session each and on a standby", 1, singles_row(), "primary")


async def write_standby(subject: Subject) -> None:
    """A connection that names the standby, and a role."""
    await write_watched(subject.calls, subject.database.dsn, _standby(subject))


async def measure_batch(subject: Subject, wanted: int) -> None:
    """One round of `batch_row`; as many as the server takes connections."""
    figure = await _batch(subject, CROWD, wanted, [subject.database.dsn])
    subject.results.add(batch_row(figure.done + figure.errors, subject.plan.revoked), figure)


async def measure_singles(subject: Subject, wanted: int) -> None:
    """One round of `singles_row`."""
    subject.results.add(singles_row(), await _singles(subject, CROWD, wanted, [subject.database.dsn]))


async def measure_standby_batch(subject: Subject, wanted: int) -> None:
    """One round of `standby_batch_row`."""
    figure = await _batch(subject, WATCHED, wanted, [subject.database.dsn, _standby(subject)])
    subject.results.add(standby_batch_row(figure.done + figure.errors, subject.plan.revoked), figure)


async def measure_standby_singles(subject: Subject, wanted: int) -> None:
    """One round of `standby_singles_row`."""
    figure = await _singles(subject, WATCHED, wanted, [subject.database.dsn, _standby(subject)])
    subject.results.add(standby_singles_row(), figure)


async def _batch(subject: Subject, role: str, wanted: int, servers: Sequence[Secret]) -> Figure:
    async with _users(subject, role, wanted, servers) as users:
        begun_s = stopwatch_s()
        figure = await subject.calls.revoke_all(role, len(users))
        await asyncio.gather(*(user.ended() for user in users))
        return _timed(users, figure, [begun_s] * len(users))


async def _singles(subject: Subject, role: str, wanted: int, servers: Sequence[Secret]) -> Figure:
    async with _users(subject, role, wanted, servers) as users:
        begun_s = [await _revoke(subject.calls, user) for user in users]
        seconds = stopwatch_s() - begun_s[0]
        await asyncio.gather(*(user.ended() for user in users))
        return _timed(users, Figure(done=len(users), seconds=seconds), begun_s)


async def _revoke(open_calls: Calls, user: _User) -> float:
    """Ends its lease and answers when that was asked for; raises `Unavailable` when it failed."""
    begun_s = stopwatch_s()
    await open_calls.write("sys/leases/revoke", {"lease_id": user.lease_id})
    return begun_s


def _timed(users: Sequence[_User], figure: Figure, begun_s: Sequence[float]) -> Figure:
    """The figure with the time to the end of each user's last session; a session that stayed open is an error."""
    ends = [(user.last_end_s(), begun) for user, begun in zip(users, begun_s, strict=True)]
    latencies = sorted(int((end - begun) * 1e6) for end, begun in ends if end is not None)
    timed = replace(figure, latencies_us=tuple(latencies))
    if len(latencies) == len(users):
        return timed
    left = len(users) - len(latencies)
    return replace(timed, done=len(latencies), errors=left, first_error="sessions of revoked users were still open")


class _User:
    """A leased user with its sessions, and when each of these ended."""

    def __init__(self, lease_id: str, sessions: Sequence[PgConnection]) -> None:
        self.lease_id = lease_id
        self._sessions = sessions
        self._ends_s: list[float] = []
        self._all_ended = asyncio.Event()
        for session in sessions:
            session.add_termination_listener(self._on_end)

    async def ended(self) -> None:
        """Waits for the end of all sessions, for two seconds at most."""
        try:
            await asyncio.wait_for(self._all_ended.wait(), _CLOSING_S)
        except TimeoutError:
            return

    def last_end_s(self) -> float | None:
        """When the last session ended, by `stopwatch_s`; None while one is open."""
        return max(self._ends_s) if self._all_ended.is_set() else None

    def terminate(self) -> None:
        """Ends what is left of them."""
        for session in self._sessions:
            session.terminate()

    def _on_end(self, _session: object) -> None:
        self._ends_s.append(stopwatch_s())
        if len(self._ends_s) == len(self._sessions):
            self._all_ended.set()


@dataclass(frozen=True, slots=True)
class _Login:
    username: str
    password: str

    async def to(self, server: Secret) -> PgConnection:
        parts = urlsplit(server.reveal())
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}"
        return await asyncpg.connect(f"postgresql://{login}@{parts.hostname}:{parts.port}{parts.path}")


@asynccontextmanager
async def _users(subject: Subject, role: str, wanted: int, servers: Sequence[Secret]) -> AsyncIterator[list[_User]]:
    """New leases with a session on each server; whatever is left of the sessions is ended on the way out."""
    leases = await issue(subject.calls, role, min(wanted, await subject.database.spare_connections()))
    for server in servers:
        await _until_known(server, [username for _, username, _ in leases])
    gate = asyncio.Semaphore(_LOGINS_AT_ONCE)

    async def log_in(lease_id: str, username: str, password: str) -> _User:
        async with gate:
            return _User(lease_id, [await _Login(username, password).to(server) for server in servers])

    users = await asyncio.gather(*(log_in(*lease) for lease in leases))
    try:
        yield users
    finally:
        for user in users:
            user.terminate()


async def _until_known(server: Secret, usernames: Sequence[str]) -> None:
    """Waits until these users have arrived on a server. Raises `Unavailable` when they do not within a minute."""
    connection = await asyncpg.connect(server.reveal())
    started_s = stopwatch_s()
    try:
        while await connection.fetchval(_KNOWN, usernames) < len(usernames):
            if stopwatch_s() - started_s > _REPLAY_LIMIT_S:
                raise Unavailable(f"the standby does not replay: it knows no users that were made {_REPLAY_LIMIT_S:.0f} s ago")
            await asyncio.sleep(_POLL_S)
    finally:
        await connection.close()


def _standby(subject: Subject) -> Secret:
    if subject.standby is None:
        raise Unavailable("there is no standby to measure")
    return subject.standby
