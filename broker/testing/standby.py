"""A hot standby of a throw-away PostgreSQL server: a copy that streams from it, answers queries, and can be promoted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from broker.testing.broker import until
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer, ServerFailed


class Standby(PostgresServer):
    """A streaming, read-only copy of `primary`, which must be running when this is started for the first time.

    It has the primary's users and passwords. Stopped or killed it catches up at its next start, as long as the primary still has the log,
    of which it keeps 256 MB: nothing is reserved for it (no replication slot).
    """

    def __init__(self, primary: PostgresServer, *, extra_config: Mapping[str, str] | None = None) -> None:
        # What a standby needs as large as its primary has it (max_connections ...) is the same on both.
        super().__init__(primary.binaries, extra_config={**primary.config, **(extra_config or {})})
        self.primary = primary
        self.superuser_password = primary.superuser_password

    def promote(self) -> None:
        """Makes it a primary of its own; on return it takes writes. Raises `ServerFailed`."""
        done = self._run("pg_ctl", "promote", "--wait", "--pgdata", str(self.directory / "data"))
        if done.returncode:
            raise ServerFailed(f"pg_ctl promote failed:\n{done.stdout.decode(errors='replace')[-2000:]}")

    async def cut_off(self) -> None:
        """On return it has all that was committed so far, and gets no more: what is done from now on, its promotion would lose."""
        first, here = Database(self.primary), Database(self)
        [(lsn,)] = await first.ask("SELECT pg_current_wal_flush_lsn()::text")
        await until(lambda: here.ask("SELECT 1 WHERE pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn))
        await here.run("ALTER SYSTEM SET primary_conninfo = ''")
        await here.run("SELECT pg_reload_conf()")
        await until(lambda: here.ask("SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"))

    def _fill(self, data: Path, password_file: Path) -> None:
        passwords = self.directory / "passwords"
        with os.fdopen(os.open(passwords, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"*:*:*:{self.superuser}:{password_file.read_text()}\n")
        self._give(passwords)
        primary = f"host={self.primary.host} port={self.primary.port} user={self.superuser} passfile={passwords}"
        # --write-recovery-conf leaves the connection, with the file of passwords, in postgresql.auto.conf.
        done = self._run(
            *("pg_basebackup", "--pgdata", str(data), "--dbname", primary, "--checkpoint=fast"),
            *("--wal-method=stream", "--write-recovery-conf", "--no-sync"),
        )
        if done.returncode:
            raise ServerFailed(f"pg_basebackup failed:\n{done.stdout.decode(errors='replace')[-2000:]}")
