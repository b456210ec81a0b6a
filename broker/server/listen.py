"""The socket: TCP or Unix, plain or TLS."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from pathlib import Path

from aiohttp import web

from broker.errors import ConfigError
from broker.server.settings import ServerSettings
from broker.server.wire import Door

_BACKLOG = 1_024


class Listener:
    """An open door. `address` is what clients connect to, with the port that was taken where 0 was asked for."""

    def __init__(self, runner: web.ServerRunner, address: str, path: Path | None) -> None:
        self.address = address
        self._runner = runner
        self._path = path

    @classmethod
    async def open(cls, door: Door, settings: ServerSettings) -> Listener:
        """Listens. Raises `ConfigError` where that can't be: address taken, certificate unreadable."""
        endpoint = settings.endpoint()
        context = tls_context(settings)
        runner = web.ServerRunner(door, handle_signals=False, shutdown_timeout=settings.drain_s)
        await runner.setup()
        try:
            listening = _unix_socket(endpoint, settings.socket_mode) if isinstance(endpoint, Path) else _tcp_socket(*endpoint)
            await web.SockSite(runner, listening, ssl_context=context, backlog=_BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError([f"server.address: can't listen on {settings.address}: {error.strerror or error}"]) from None
        if isinstance(endpoint, Path):
            return cls(runner, settings.address, endpoint)
        host, port = listening.getsockname()[:2]
        scheme = "http" if context is None else "https"
        return cls(runner, f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}", None)

    async def close(self) -> None:
        """Stops to accept, lets requests in flight finish within `drain_s`, and closes every connection."""
        await self._runner.cleanup()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """TLS 1.2 and up with the configured certificate; None where none is configured. Raises `ConfigError`."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    files = {"server.tls_cert_file": settings.tls_cert_file, "server.tls_key_file": settings.tls_key_file}
    if unread := [f"{key}: {path} can't be read ({reason})" for key, path in files.items() if (reason := _unreadable(path))]:
        raise ConfigError(unread)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file, password=_no_passphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            [
                f"server.tls_cert_file, server.tls_key_file: not a certificate and its key without passphrase, both in PEM ({reason})"
            ]
        ) from None
    return context


def _unreadable(path: Path) -> str | None:
    # OpenSSL does not say which of the two files it could not open.
    try:
        path.open("rb").close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _no_passphrase() -> str:
    # Otherwise OpenSSL would ask for it at the terminal.
    raise ValueError("the key is encrypted")


def _tcp_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """A bound socket with these permissions from its first moment. One that a dead process left behind is replaced."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mask decides at bind, so there is no moment in which others could connect. Nothing else runs in this thread meanwhile.
    before = os.umask(0o777 & ~mode)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(0, "a file that is no socket is in the way")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(0, "another process is listening on it")
