"""A whole broker inside somebody's test suite: in this process, or in one of its own that may be killed.

async with Broker() as broker:
    answer = await broker.request("GET", "database/creds/app")
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from broker import config, daemon
from broker.clock import stopwatch_s
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer

CREATE_USER = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
"""The creation statement of a role whose users may log in and nothing more."""
PROGRAM = (sys.executable, "-c", "from broker.cli.main import main; main()")
"""The command `broker`, of the interpreter that runs us."""
SERVE = (*PROGRAM, "serve", "--config")
"""`broker serve`, up to the path of the configuration."""

_START_LIMIT_S = 120
_STOP_LIMIT_S = 120
_ANSWER_LIMIT_S = 120
_ROOT_TOKEN = "root-token"


class BrokerFailed(RuntimeError):
    """The broker ended instead of starting, or did neither in time; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The decoded JSON; None where there is no body."""
        return json.loads(self.raw) if self.raw else None

    @property
    def data(self) -> Any:
        """The `data` of the envelope."""
        return self.body["data"]

    @property
    def errors(self) -> list[str]:
        """The texts of an error body."""
        return list(self.body["errors"])


class Caller:
    """Speaks to a broker at `address` (`http://...`, `https://...` or `unix:/path`) as a Vault client does."""

    def __init__(self, address: str, root_token: Secret, *, tls: Any = True) -> None:
        self.address = address
        self.root_token = root_token
        self._tls = tls

    async def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Asks for `/v1/<path>`, with the root token unless `token` says otherwise (empty: none). A body of bytes goes as it is.

        Each request has a connection of its own. Raises `aiohttp.ClientError` when the broker does not answer.
        """
        shown = self.root_token.reveal() if token is None else token
        sent = {**({"X-Vault-Token": shown} if shown else {}), **(headers or {})}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        unix = self.address.removeprefix("unix:") if self.address.startswith("unix:") else None
        connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(ssl=self._tls)
        limit = aiohttp.ClientTimeout(total=_ANSWER_LIMIT_S)
        url = f"{'http://broker' if unix else self.address}/v1/{path}"
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limit) as session,
            session.request(method, url, data=content, headers=sent) as response,
        ):
            return Answer(response.status, response.headers, await response.read())


class Broker:
    """A broker in this process and event loop, on a free port of 127.0.0.1, its master key in memory unless `seams` say otherwise.

    `content` is its configuration as if it had been read from a file; `directory` is where its state is, a temporary one that
    goes with this object unless given. It may be entered again after its end, and goes on where it was.
    """

    def __init__(
        self,
        directory: Path | None = None,
        content: Mapping[str, Any] | None = None,
        *,
        seams: daemon.Seams | None = None,
    ) -> None:
        given = dict(content or {})
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="broker-testing-")
            directory = Path(self._temporary.name) / "state"
        self.config = config.parse(
            {
                **given,
                "server": {"address": "127.0.0.1:0", **given.get("server", {})},
                "store": {"directory": str(directory), **given.get("store", {})},
            }
        )
        self._seams = seams or daemon.Seams(key=MemoryKey())
        self._daemon: daemon.Daemon | None = None

    async def __aenter__(self) -> Self:
        self._daemon = await daemon.start(self.config, self._seams)
        return self

    async def __aexit__(self, *_: object) -> None:
        running, self._daemon = self._daemon, None
        if running is not None:
            await running.stop()

    @property
    def daemon(self) -> daemon.Daemon:
        """What runs. Raises `BrokerFailed` while nothing does."""
        if self._daemon is None:
            raise BrokerFailed("the broker does not run")
        return self._daemon

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.daemon.address

    @property
    def root_token(self) -> Secret:
        """Its root token, which it wrote down at its first start."""
        return Secret((self.config.store.directory / _ROOT_TOKEN).read_text(encoding="ascii").strip())

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """See `Caller.request`."""
        return await Caller(self.address, self.root_token).request(method, path, body, **options)


class BrokerProcess:
    """A broker in a process of its own: `broker serve` with the configuration `content` (TOML), unless `command` says otherwise.

    It listens on a Unix socket in `directory` and keeps its state there, unless `content` has sections `[server]` or `[store]`.
    Outlives event loops: usable from fixtures of any scope. `with` kills it at the end.
    """

    def __init__(
        self,
        directory: Path,
        content: str = "",
        *,
        command: Sequence[str] = SERVE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "broker.toml"
        self.log_file = directory / "broker.log"
        self.tls: Any = True
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        if "[server]" not in content:
            content += f'\n[server]\naddress = "unix:{directory / "http.sock"}"\n'
        if "[store]" not in content:
            content += f'\n[store]\ndirectory = "{self.state}"\n'
        self.config.write_text(content, encoding="utf-8")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The number of the process. Raises `BrokerFailed` before the first start."""
        if self._process is None:
            raise BrokerFailed("the broker was not started yet")
        return self._process.pid

    @property
    def address(self) -> str:
        """Where it listens, by the newest `ready` line of its log."""
        ready = [line for line in self.log_lines() if line.get("event") == "ready"]
        if not ready:
            raise BrokerFailed("the log has no line `ready`: it must be JSON, at level info")
        return str(ready[-1]["address"])

    @property
    def root_token(self) -> Secret:
        """Its root token, which it wrote down at its first start."""
        return Secret((self.state / _ROOT_TOKEN).read_text(encoding="ascii").strip())

    @property
    def audit_file(self) -> Path:
        """Its audit log, where the configuration does not put it elsewhere."""
        return self.state / "audit.log"

    def log(self) -> str:
        """All that it has written to standard output and standard error, over all its starts."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """The log's JSON lines; the last one may still be being written and does not count then."""
        return [
            json.loads(line) for line in self.log().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")
        ]

    def start(self, *arguments: str) -> None:
        """Starts it, with further arguments of its command; on return it answers. Raises `BrokerFailed`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            # A name in the abstract namespace (unix(7)): the kernel makes it, and it is gone with the socket.
            ready.bind("")
            ready.settimeout(0.1)
            environment = {**self._environment, "NOTIFY_SOCKET": f"@{ready.getsockname()[1:].decode()}"}
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the interpreter that runs us, or the caller's own command
                    [*self._command, str(self.config), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
            deadline = stopwatch_s() + _START_LIMIT_S
            while self.running and stopwatch_s() < deadline:
                try:
                    if b"READY=1" in ready.recv(4096):
                        return
                except TimeoutError:
                    continue
        raise BrokerFailed(f"the broker did not start; the end of its log:\n{self.log()[-4000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and its end awaited. Does nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; answers the exit status. Raises `subprocess.TimeoutExpired` after two minutes."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit status, once it has ended. Raises `subprocess.TimeoutExpired` after two minutes."""
        if self._process is None:
            raise BrokerFailed("the broker was not started yet")
        return self._process.wait(_STOP_LIMIT_S)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """See `Caller.request`."""
        return await Caller(self.address, self.root_token, tls=self.tls).request(method, path, body, **options)


async def until(holds: Callable[[], Awaitable[object]], *, limit_s: float = 50, every_s: float = 0.02) -> None:
    """Returns once `holds` answers something true. Raises `TimeoutError` after `limit_s`.

    A busy machine may need long; a minute, after which work that was forgotten is found again, would hide that it was forgotten.
    """
    async with asyncio.timeout(limit_s):
        while not await holds():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(every_s)


def connection_to(server: PostgresServer, **fields: Any) -> dict[str, Any]:
    """The body of `database/config/<name>` for a throw-away server, as its superuser and for every role."""
    return {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": server.url_template(),
        "username": server.superuser,
        "password": server.superuser_password.reveal(),
        "allowed_roles": "*",
        **fields,
    }
