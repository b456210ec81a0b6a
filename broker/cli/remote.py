"""Speaking to a running broker from the command line, over its HTTP API, with the settings that clients of Vault know."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import orjson
import typer

from broker.errors import BrokerError, ConfigError, InvalidRequest, PermissionDenied, Unavailable
from broker.secret import Secret

DEFAULT_ADDRESS = "http://127.0.0.1:8200"
_LIMIT_S = 300
_UNIX = "unix:"

Address = Annotated[
    str, typer.Option(envvar=["BROKER_ADDR", "VAULT_ADDR"], help="Where the broker listens: http://, https:// or unix:/path.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="A file that holds the token; VAULT_TOKEN, or ~/.vault-token, unless given.")
]


@dataclass(frozen=True, slots=True)
class Remote:
    """A broker elsewhere, and the token to be shown to it."""

    address: str
    token: Secret
    tls: ssl.SSLContext | bool = True

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The answer of `/v1/<path>`; empty where it has no content.

        Raises `PermissionDenied`, `InvalidRequest` with what the broker says, `Unavailable` where it does not answer, and
        `ConfigError` for what is no address.
        """
        unix = self.address.removeprefix(_UNIX) if self.address.startswith(_UNIX) else ""
        url = f"{'http://broker' if unix else self.address.rstrip('/')}/v1/{path}"
        connector = aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(ssl=self.tls)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_LIMIT_S)) as session,
                session.request(
                    method,
                    url,
                    data=None if body is None else orjson.dumps(body),
                    headers={"X-Vault-Token": self.token.reveal()},
                ) as response,
            ):
                return _understood(response.status, await response.read())
        except aiohttp.InvalidURL:
            raise ConfigError([f"--address: {self.address} is no address, such as http://127.0.0.1:8200"]) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the broker at {self.address} does not answer: {error or type(error).__name__}") from None


def remote(address: str, token_file: Path | None, environment: Mapping[str, str] = os.environ) -> Remote:
    """The broker at `address`. The token comes from a file or the environment, never from an argument, which others could see.

    Raises `ConfigError` naming what is missing or not readable.
    """
    if not address.startswith((_UNIX, "http://", "https://")):
        raise ConfigError([f"--address: {address} is neither http://, https:// nor unix:/path"])
    # Vault's clients write the path of a socket after `unix://`.
    address = address.replace("unix://", _UNIX, 1) if address.startswith("unix://") else address
    return Remote(address, _token(token_file, environment), _tls(environment))


def _token(token_file: Path | None, environment: Mapping[str, str]) -> Secret:
    if token_file is None and environment.get("VAULT_TOKEN"):
        return _one_line(environment["VAULT_TOKEN"], "VAULT_TOKEN")
    path = token_file or Path(environment.get("HOME", "/")) / ".vault-token"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"no token: {path} can't be read; give --token-file FILE, or set VAULT_TOKEN"]) from None
    return _one_line(text, str(path))


def _one_line(text: str, source: str) -> Secret:
    text = text.strip()
    if not text.isascii() or not text.isprintable() or not text:
        raise ConfigError([f"no token: {source} does not hold one"])
    return Secret(text)


def _tls(environment: Mapping[str, str]) -> ssl.SSLContext | bool:
    authorities = environment.get("VAULT_CACERT", "")
    if not authorities:
        return True
    try:
        return ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError):
        raise ConfigError([f"VAULT_CACERT: {authorities} can't be read as PEM"]) from None


def _understood(status: int, content: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(content) if content else {}
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise Unavailable(f"what answers is no broker (status {status})")
    if status < HTTPStatus.BAD_REQUEST:
        return body
    # Vault's texts of several errors have a line for each.
    text = "; ".join(" ".join(str(each).split()) for each in body.get("errors") or []) or f"status {status}"
    kinds: dict[int, type[BrokerError]] = {HTTPStatus.FORBIDDEN: PermissionDenied, HTTPStatus.TOO_MANY_REQUESTS: Unavailable}
    raise kinds.get(status, Unavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else InvalidRequest)(text)
