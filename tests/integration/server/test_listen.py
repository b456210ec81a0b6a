"""The socket: TCP, Unix, TLS."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.errors import ConfigError
from broker.server.listen import Listener
from broker.server.settings import ServerSettings
from broker.server.wire import Door

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def _hello(_request: BaseRequest) -> Response:
    return Response(text="hello")


@asynccontextmanager
async def listening(settings: ServerSettings) -> AsyncIterator[Listener]:
    """An open door that says hello."""
    listener = await Listener.open(Door(_hello, settings), settings)
    try:
        yield listener
    finally:
        await listener.close()


async def _greeted(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    reader, writer = streams
    writer.write(REQUEST)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.endswith(b"hello")


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A self-signed certificate and its key, encrypted with a passphrase if one is given."""

    def make(passphrase: bytes | None = None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=3_650))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
        return cert_file, key_file

    return make


async def test_tcp() -> None:
    """A free port is taken where 0 is asked for, and named."""
    async with listening(ServerSettings(address="127.0.0.1:0")) as listener:
        host, _, port = listener.address.removeprefix("http://").rpartition(":")
        assert int(port) > 0
        assert await _greeted(await asyncio.open_connection(host, int(port)))


async def test_a_taken_port_is_named() -> None:
    """With its key in the configuration."""
    async with listening(ServerSettings(address="127.0.0.1:0")) as listener:
        address = listener.address.removeprefix("http://")
        with pytest.raises(ConfigError, match=r"server\.address: can't listen on .*Address already in use"):
            await Listener.open(Door(_hello, ServerSettings(address=address)), ServerSettings(address=address))


async def test_unix_socket(tmp_path: Path) -> None:
    """With its permissions, and gone when it is closed."""
    path = tmp_path / "broker.sock"
    async with listening(ServerSettings(address=f"unix:{path}", socket_mode=0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await _greeted(await asyncio.open_unix_connection(path))
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    """A process that was killed leaves its file."""
    path = tmp_path / "broker.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(ServerSettings(address=f"unix:{path}")):
        assert await _greeted(await asyncio.open_unix_connection(path))


async def test_a_living_socket_is_left_alone(tmp_path: Path) -> None:
    """Another broker listens there."""
    settings = ServerSettings(address=f"unix:{tmp_path}/broker.sock")
    async with listening(settings):
        with pytest.raises(ConfigError, match="another process is listening"):
            await Listener.open(Door(_hello, settings), settings)
        assert await _greeted(await asyncio.open_unix_connection(tmp_path / "broker.sock"))


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """It may be somebody's."""
    path = tmp_path / "broker.sock"
    path.write_text("mine")
    settings = ServerSettings(address=f"unix:{path}")
    with pytest.raises(ConfigError, match="no socket is in the way"):
        await Listener.open(Door(_hello, settings), settings)
    assert path.read_text() == "mine"


async def test_tls(pair: Callable[..., tuple[Path, Path]]) -> None:
    """1.2 and up, with the configured certificate."""
    cert_file, key_file = pair()
    settings = ServerSettings(address="127.0.0.1:0", tls_cert_file=cert_file, tls_key_file=key_file)
    async with listening(settings) as listener:
        port = int(listener.address.rpartition(":")[2])
        assert listener.address.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert_file))
        assert await _greeted(await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))


async def test_old_tls_is_refused(pair: Callable[..., tuple[Path, Path]]) -> None:
    """The handshake fails."""
    cert_file, key_file = pair()
    settings = ServerSettings(address="127.0.0.1:0", tls_cert_file=cert_file, tls_key_file=key_file)
    async with listening(settings) as listener:
        context = ssl.create_default_context(cafile=str(cert_file))
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(
                "127.0.0.1", int(listener.address.rpartition(":")[2]), ssl=context, server_hostname="localhost"
            )


@pytest.mark.parametrize("fault", ["encrypted", "missing", "garbage"])
async def test_an_unusable_certificate_is_named(pair: Callable[..., tuple[Path, Path]], fault: str) -> None:
    """By its key in the configuration, without asking for a passphrase."""
    cert_file, key_file = pair(b"passphrase" if fault == "encrypted" else None)
    if fault == "missing":
        key_file.unlink()
    if fault == "garbage":
        cert_file.write_text("no certificate")
    settings = ServerSettings(address="127.0.0.1:0", tls_cert_file=cert_file, tls_key_file=key_file)
    key = r"server\.tls_key_file: .*/key\.pem can't be read" if fault == "missing" else r"server\.tls_cert_file"
    with pytest.raises(ConfigError, match=key):
        await Listener.open(Door(_hello, settings), settings)
