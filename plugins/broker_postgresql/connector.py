"""Opening one connection: the hosts in turn, TLS, and the settings that a database's owner must not be able to change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker.secret import Secret
from broker_postgresql import framing
from broker_postgresql.hosts import Hosts
from broker_postgresql.primary import remembered
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Greeting, Session, Wire, cluster_of, greet, line_of
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
    # The owner of a database may name libraries that are not there: then nobody who does not set this gets in.
    "local_preload_libraries": "",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "idle_in_transaction_session_timeout": "60s",
    "idle_session_timeout": "0",
    "synchronous_commit": "on",
    # Else every error, a handled one too, would end the session.
    "exit_on_error": "off",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
    "password_encryption": "scram-sha-256",
    "plpgsql.extra_errors": "none",
    # What they print into the server's log holds passwords and verifiers.
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
}
_PINNED_FROM = {16: {"createrole_self_grant": ""}, 17: {"transaction_timeout": "0"}}
"""By the release that brought them: older servers refuse a connection that sets what they don't know."""
_QUIET = {
    # Each statement on a role counts as a new one, so soon none of the application's would be left; nested ones hold verifiers.
    "pg_stat_statements.track_utility": "off",
    # A session that is ended from outside logs what it was doing, down to the nested statement.
    "log_error_verbosity": "terse",
}
_RIGHTS_ON_PARAMETERS = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a kind of connection waits for at most, and what else is set on it."""

    statement_timeout_s: int
    lock_timeout_ms: int
    settings: Mapping[str, str]


_LOOK = Purpose(statement_timeout_s=5, lock_timeout_ms=1_000, settings={})
_OTHER_CLUSTER = "the server belongs to another database cluster than this connection's others did"


class Connector:
    """Opens connections of one broker connection."""

    def __init__(self, where: str, settings: ConnectionSettings, origin: Origin) -> None:
        self.target: Target = settings.target()
        self.application_name = application_name(origin)
        self._where = where
        self._tls = tls(self.target, settings)
        self._pinned: dict[str, str] = {}
        """What the server's release has beside `_PINNED`, as far as it is known."""
        self._quiet: dict[str, str] = {}
        self._cluster = ""
        self.hosts = Hosts(self.target.hosts, where, remembered(self.target.hosts, origin.timeline, origin.addresses))

    def doubt(self) -> None:
        """Has the next connection ask all hosts, since the one that was worked with may be gone."""
        self.hosts.doubt()

    async def look(self) -> None:
        """See `Hosts.look`."""
        await self.hosts.look(lambda host, port: self._connect_to(host, port, _LOOK, self.target.database))

    async def connect(self, purpose: Purpose, database: str = "") -> Session:
        """A connection to the host that takes writes, of several the one with the highest timeline.

        It leads to the home database unless another one is named. Raises `DatabaseUnavailable` that says what each host answered.
        """
        session = await self.hosts.connect(
            lambda host, port: self._settled(host, port, purpose, database or self.target.database)
        )
        if self._cluster and session.cluster != self._cluster:
            session.wire.terminate()
            raise DatabaseUnavailable(f"{self._where}: {_OTHER_CLUSTER}")
        self._cluster = session.cluster
        return session

    async def connect_to_standby(self, host: str, port: int, purpose: Purpose) -> Session:
        """A connection to the home database on one server of the cluster, whether or not it takes writes.

        The cluster is the one that the connections for writing found, so one of those comes first. Raises `DatabaseUnavailable`, and what
        the driver raises.
        """
        wire = await self._wire(host, port, purpose, self.target.database)
        try:
            session = Session(wire, await greet(wire), await cluster_of(wire, self.target.database))
        except BaseException:
            wire.terminate()
            raise
        if session.cluster == self._cluster:
            return session
        wire.terminate()
        raise DatabaseUnavailable("the server belongs to another database cluster, and was left alone")

    async def wire_of(self, host: str, port: int, user: str, password: Secret) -> Wire:
        """A bare connection of somebody else's login to the home database of one host. Raises what the driver raises."""
        return await framing.connect(
            host=host,
            port=port,
            user=user,
            password=password.reveal(),
            database=self.target.database,
            ssl=self._tls,
            timeout=self.target.connect_timeout_s or _HOST_TIMEOUT_S,
            server_settings={"application_name": self.application_name},
        )

    async def _settled(self, host: str, port: int, purpose: Purpose, database: str) -> Session:
        """A connection with what its server's release and our login allow to be set; the first connection tells.

        It can only be asked for at the start, lest RESET ALL undoes it.
        """
        try:
            session = await self._connect_to(host, port, purpose, database)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError):
            if not self._quiet and not self._pinned:
                raise
            self._quiet, self._pinned = {}, {}
            session = await self._connect_to(host, port, purpose, database)
        try:
            quiet = await _quiet(session)
        except BaseException:
            session.wire.terminate()
            raise
        if quiet == self._quiet:
            return session
        self._quiet = quiet
        await session.wire.close(timeout=_HOST_TIMEOUT_S)
        return await self._connect_to(host, port, purpose, database)

    async def _connect_to(self, host: str, port: int, purpose: Purpose, database: str) -> Session:
        wire = await self._wire(host, port, purpose, database)
        try:
            pinned = _pinned_on(wire)
            if pinned != self._pinned:
                # Before anything is asked: what is not pinned yet may cut off the first query.
                self._pinned = pinned
                wire.terminate()
                wire = await self._wire(host, port, purpose, database)
            greeting = await _writable(wire)
            cluster, line = await self._same_cluster(wire), await line_of(wire)
        except BaseException:
            wire.terminate()
            raise
        return Session(wire, greeting, cluster, line)

    async def _wire(self, host: str, port: int, purpose: Purpose, database: str) -> Wire:
        return await framing.connect(
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
                **self._pinned,
                **self._quiet,
            },
        )

    async def _same_cluster(self, wire: Wire) -> str:
        """The cluster that the first connection found; a name that leads elsewhere by now would prove its users absent there."""
        found = await cluster_of(wire, self.target.database)
        if self._cluster and found != self._cluster:
            raise DatabaseUnavailable(_OTHER_CLUSTER)
        return found


def _pinned_on(wire: Wire) -> dict[str, str]:
    major = wire.get_server_version().major
    return {name: value for release, settings in _PINNED_FROM.items() if major >= release for name, value in settings.items()}


async def _quiet(session: Session) -> dict[str, str]:
    """What of `_QUIET` our login may set: a superuser all, others what they were given the right to (15 and later)."""
    if session.greeting.superuser:
        return dict(_QUIET)
    if session.greeting.number < _RIGHTS_ON_PARAMETERS:
        return {}
    rows = await session.wire.fetch(QUERIES["may_set"], list(_QUIET), timeout=_HOST_TIMEOUT_S)
    return {row["name"]: _QUIET[row["name"]] for row in rows}


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
