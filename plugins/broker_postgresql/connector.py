"""Opening one connection: the hosts in turn, TLS, and the settings that a database's owner must not be able to change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker_postgresql.failures import first_line
from broker_postgresql.session import Greeting, Session, Wire, cluster_of, greet
from broker_postgresql.settings import ConnectionSettings
from broker_postgresql.target import Target
from broker_postgresql.tls import tls

_HOST_TIMEOUT_S = 5
"""For one host, all of the login included; a silent host must not use up the time of the next ones."""
_APPLICATION_NAME_BYTES = 63
_PINNED = {
    # Start-up settings beat those that a database or role has by ALTER ... SET, and RESET ALL returns to them.
    "search_path": "pg_catalog, pg_temp",
    "role": "none",
    "client_min_messages": "notice",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "idle_in_transaction_session_timeout": "60s",
    "synchronous_commit": "on",
}

_UNTRACKED = {"pg_stat_statements.track_utility": "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a kind of connection waits for at most, and what else is set on it."""

    statement_timeout_s: int
    lock_timeout_ms: int
    settings: Mapping[str, str]


class Connector:
    """Opens connections of one broker connection."""

    def __init__(self, where: str, settings: ConnectionSettings, origin: Origin) -> None:
        self.target: Target = settings.target()
        self.application_name = application_name(origin)
        self._where = where
        self._tls = tls(self.target, settings)
        self._extra: dict[str, str] = {}
        self._cluster = ""

    async def connect(self, purpose: Purpose, database: str = "") -> Session:
        """A connection to the first host that takes writes; to the home database unless another one is named.

        Raises `DatabaseUnavailable` that says what each host answered.
        """
        refusals: list[str] = []
        for host, port in self.target.hosts:
            try:
                return await self._untracked(host, port, purpose, database or self.target.database)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DatabaseUnavailable) as error:
                refusals.append(f"{host}:{port}: {first_line(error) or type(error).__name__}")
        raise DatabaseUnavailable(f"{self._where}: no server to work with; {'; '.join(refusals)}")

    async def _untracked(self, host: str, port: int, purpose: Purpose, database: str) -> Session:
        """A connection whose statements `pg_stat_statements` leaves out, where our login may ask for that.

        Each statement on a role counts as a new one there, so soon none of the application's would be left. It can only be
        asked for at the start, lest RESET ALL undoes it; and by a superuser, which the first connection tells.
        """
        try:
            session = await self._connect_to(host, port, purpose, database)
        except asyncpg.InsufficientPrivilegeError:
            if not self._extra:
                raise
            self._extra = {}
            return await self._connect_to(host, port, purpose, database)
        if self._extra or not session.greeting.superuser:
            return session
        self._extra = dict(_UNTRACKED)
        await session.wire.close(timeout=_HOST_TIMEOUT_S)
        return await self._connect_to(host, port, purpose, database)

    async def _connect_to(self, host: str, port: int, purpose: Purpose, database: str) -> Session:
        wire = await asyncpg.connect(
            host=host,
            port=port,
            user=self.target.user,
            password=self.target.password.reveal(),
            database=database,
            ssl=self._tls,
            timeout=self.target.connect_timeout_s or _HOST_TIMEOUT_S,
            max_cached_statement_lifetime=0,
            server_settings={
                **_PINNED,
                "application_name": self.application_name,
                "statement_timeout": f"{purpose.statement_timeout_s}s",
                "lock_timeout": f"{purpose.lock_timeout_ms}ms",
                **purpose.settings,
                **self._extra,
            },
        )
        try:
            greeting = await _writable(wire)
            cluster = await self._same_cluster(wire)
        except BaseException:
            wire.terminate()
            raise
        return Session(wire, greeting, cluster)

    async def _same_cluster(self, wire: Wire) -> str:
        """The cluster that the first connection found; a name that leads elsewhere by now would prove its users absent there."""
        found = await cluster_of(wire, self.target.database)
        if self._cluster and found != self._cluster:
            raise DatabaseUnavailable("the server belongs to another database cluster than this connection's others did")
        self._cluster = found
        return found


async def _writable(wire: Wire) -> Greeting:
    greeting = await greet(wire)
    if not greeting.writable:
        raise DatabaseUnavailable("the server is a standby or read-only")
    return greeting


def application_name(origin: Origin) -> str:
    """What the server shows of our sessions: `broker/<broker>/<boot>`; a digest stands for a boot that would be cut."""
    name = f"broker/{origin.broker}/{origin.boot}"
    if len(name.encode()) <= _APPLICATION_NAME_BYTES:
        return name
    return f"broker/{origin.broker}/{hashlib.sha256(origin.boot.encode()).hexdigest()[:16]}"
