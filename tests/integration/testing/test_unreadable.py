"""A throw-away server starts wherever its programs are installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import asyncpg

from broker.testing.postgresql import PostgresServer, embedded_binaries


async def test_server_starts_from_an_installation_closed_to_others(tmp_path: Path) -> None:
    """A virtual environment below root's home is no hindrance: what the server's account can't read is copied, libraries too."""
    installed = embedded_binaries()
    assert installed is not None
    package = installed.parents[1]
    closed = tmp_path / "closed"
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True)
    closed.chmod(0o700)
    async with PostgresServer(closed / installed.relative_to(package.parent)) as server:
        connection = await asyncpg.connect(server.superuser_dsn().reveal(), ssl=False)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
