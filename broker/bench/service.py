"""The broker under the bench: the real daemon, in a process and a temporary directory of its own, and the roles to measure."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import aiohttp

from broker.bench.calls import Address, Calls, calls
from broker.bench.plan import Plan
from broker.bench.processes import free_port, resident_mb, stop
from broker.bench.raw import GROUP
from broker.clock import stopwatch_s
from broker.errors import Unavailable
from broker.seal.providers import FileKey
from broker.secret import Secret

ON_DEMAND = "measured"
PREPARED = "ready"
CROWD = "crowd"
"""A role whose users are made fast (one SCRAM iteration) in order to be ended."""
OWNERS = "owners"
"""The same, with what they own dropped at the end."""
WATCHED = "watched"
"""A connection that names a standby, and its role."""
FULL, QUICK = "full", "quick"
POOL_NAMES = "%-pool-%"
"""What the names of prepared users are LIKE."""
_READY_S = 60.0
_POLL_S = 0.005
_CONNECTIONS = 8
_HALF_A_DAY = {"default_ttl": "12h", "max_ttl": "24h"}
_CREATION = f"CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {GROUP}"


class Service:
    """A daemon that can be started, paused and stopped; its state outlives it, up to the end of the bench."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        """`settings` are added to its configuration, as TOML."""
        self.directory = directory
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        (directory / "broker.toml").write_text(_config(directory, self.port) + settings)

    @property
    def address(self) -> Address:
        """Where it listens, and its root token."""
        return Address(host="127.0.0.1", port=self.port, token=Secret((self.state / "root-token").read_text().strip()))

    @property
    def state(self) -> Path:
        """Where it keeps its store and its key."""
        return self.directory / "state"

    def master_key(self) -> bytes:
        """The key that its store is sealed with."""
        return FileKey(self.state / "master.key").master_key()

    async def start(self) -> float:
        """Starts it; answers the seconds until it says that it is ready. Raises `Unavailable`."""
        started_s = stopwatch_s()
        with (self.directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", "from broker.cli.main import main; main()"),
                *("serve", "--config", str(self.directory / "broker.toml")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with aiohttp.ClientSession() as session:
            while not await self._healthy(session):
                if self._process.returncode is not None or stopwatch_s() - started_s > _READY_S:
                    raise Unavailable(f"the broker did not start; the end of its log:\n{self.log_end()}")
                await asyncio.sleep(_POLL_S)
        return stopwatch_s() - started_s

    async def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None:
            await stop(self._process)
            self._process = None

    def signal(self, number: int) -> None:
        """Sends it a signal; SIGSTOP and SIGCONT pause it."""
        if self._process is not None:
            os.kill(self._process.pid, number)

    def resident_mb(self) -> float:
        """Its resident memory."""
        return resident_mb(self._process.pid) if self._process is not None else 0.0

    def log_end(self) -> str:
        """The last that it logged."""
        return (self.directory / "log").read_text(errors="replace")[-2000:]

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/v1/sys/health") as reply:
                return reply.status == HTTPStatus.OK
        except aiohttp.ClientConnectionError:
            return False


@asynccontextmanager
async def service(settings: str = "") -> AsyncIterator[Service]:
    """A daemon, not started yet; stopped, and all that it wrote removed, on the way out."""
    with TemporaryDirectory(prefix="broker-bench-") as name:
        made = Service(Path(name), settings)
        try:
            yield made
        finally:
            await made.stop()


@asynccontextmanager
async def configured(made: Service, dsn: Secret, plan: Plan) -> AsyncIterator[Calls]:
    """Starts the daemon and writes the connections and roles that are measured; yields calls to it."""
    await made.start()
    async with calls(made.address) as open_calls:
        await _write_connections(open_calls, dsn, plan)
        await _write_roles(open_calls, plan)
        yield open_calls


async def write_role_due(open_calls: Calls, seconds: int) -> None:
    """A role whose leases live that many seconds; its name is `due-<seconds>`."""
    await open_calls.write(f"database/roles/due-{seconds}", {**_role(QUICK), "default_ttl": seconds})


async def write_watched(open_calls: Calls, dsn: Secret, standby: Secret) -> None:
    """A connection that names the standby, and a role of the same name."""
    parts = urlsplit(standby.reveal())
    fields = {**_connection(dsn, iterations=1), "standbys": [f"{parts.hostname}:{parts.port}"]}
    await open_calls.write(f"database/config/{WATCHED}", fields)
    await open_calls.write(f"database/roles/{WATCHED}", {**_role(WATCHED), **_HALF_A_DAY})


async def _write_connections(open_calls: Calls, dsn: Secret, plan: Plan) -> None:
    for name, iterations in ((FULL, plan.scram_iterations), (QUICK, 1)):
        await open_calls.write(f"database/config/{name}", _connection(dsn, iterations))


def _connection(dsn: Secret, iterations: int) -> dict[str, object]:
    parts = urlsplit(dsn.reveal())
    return {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{parts.hostname}:{parts.port}{parts.path}"
        "?sslmode=disable",
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "scram_iterations": iterations,
        "max_open_connections": _CONNECTIONS,
        "allowed_roles": "*",
    }


async def _write_roles(open_calls: Calls, plan: Plan) -> None:
    await open_calls.write(f"database/roles/{ON_DEMAND}", {**_role(FULL), **_HALF_A_DAY})
    await open_calls.write(f"database/roles/{PREPARED}", {**_role(QUICK), **_HALF_A_DAY, "prepared_users": plan.prepared})
    await open_calls.write(f"database/roles/{CROWD}", {**_role(QUICK), **_HALF_A_DAY})
    await open_calls.write(f"database/roles/{OWNERS}", {**_role(QUICK), **_HALF_A_DAY, "owned_objects": "drop"})


def _role(connection: str) -> dict[str, object]:
    return {"db_name": connection, "creation_statements": [_CREATION]}


def _config(directory: Path, port: int) -> str:
    return f"""
[server]
address = "127.0.0.1:{port}"

[store]
directory = "{directory / "state"}"
"""
