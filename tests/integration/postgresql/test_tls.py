"""Speaking TLS to a real server: what is verified in which mode, and our own certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.engines.protocol import Origin
from broker.errors import DatabaseUnavailable
from broker.testing.postgresql import PostgresServer
from broker_postgresql import Engine

Pair = tuple[str, str]
START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2120, 1, 1, tzinfo=dt.UTC)


def certificate(name: str, signer: Pair | None = None) -> Pair:
    """A certificate for a name, signed by itself or by the signer, and its key; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing = subject, key
    if signer is not None:
        issuer = x509.load_pem_x509_certificate(signer[0].encode()).subject
        signing = serialization.load_pem_private_key(signer[1].encode(), None)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), START, END)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(*form).decode()


@pytest.fixture(scope="module")
def authority() -> Pair:
    """Who signs."""
    return certificate("authority")


@pytest.fixture(scope="module")
def server(binaries_15: Path, authority: Pair) -> Iterator[PostgresServer]:
    """A server that speaks TLS as `localhost` and takes nothing else over TCP, and that asks `certified` for a certificate."""
    with PostgresServer(binaries_15, extra_config={"fsync": "off"}) as server:
        data = server.directory / "data"
        owner = data.stat()
        texts = dict(zip(("server.crt", "server.key"), certificate("localhost", authority), strict=True))
        texts |= {"root.crt": authority[0]}
        rules = "hostssl all certified 127.0.0.1/32 scram-sha-256 clientcert=verify-full\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
        for name, text in {**texts, "pg_hba.conf": f"{rules}local all all scram-sha-256\n"}.items():
            (data / name).write_text(text)
            (data / name).chmod(0o600)
            os.chown(data / name, owner.st_uid, owner.st_gid)
        asyncio.run(_switch_on(server))
        server.restart()
        yield server


async def _switch_on(server: PostgresServer) -> None:
    wire: Any = await asyncpg.connect(server.superuser_dsn().reveal())
    word = server.superuser_password.reveal()
    await wire.execute("ALTER SYSTEM SET ssl = on")
    await wire.execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
    await wire.execute(f"CREATE ROLE certified LOGIN SUPERUSER PASSWORD '{word}'")
    await wire.close()


async def reached(server: PostgresServer, mode: str, host: str = "127.0.0.1", **fields: Any) -> bool:
    """Whether an engine with these fields gets in."""
    url = server.url_template().replace("127.0.0.1", host).replace("sslmode=disable", f"sslmode={mode}")
    config = {"username": server.superuser, "password": server.superuser_password.reveal(), "connection_url": url, **fields}
    engine = Engine("tls", config, Origin(broker="b", boot="x"))
    try:
        return (await engine.open()).writable
    except DatabaseUnavailable:
        return False
    finally:
        await engine.close()
        await _let_go()


async def _let_go() -> None:
    """The driver closes a refused connection without waiting: a loop that ends before the server's farewell leaves its socket open."""
    loop: Any = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while len(loop._selector.get_map()) > 1:  # the loop's own socket stays
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)


async def test_modes_verify_what_they_say(server: PostgresServer, authority: Pair) -> None:
    """Plain text is refused here; `require` verifies what it was given to verify with, `verify-full` the name too."""
    stranger = certificate("stranger")[0]
    assert not await reached(server, "disable")
    assert await reached(server, "prefer")
    assert await reached(server, "require")
    assert await reached(server, "verify-ca", tls_ca=authority[0])
    assert not await reached(server, "verify-ca", tls_ca=stranger)
    assert not await reached(server, "require", tls_ca=stranger)
    assert await reached(server, "verify-full", host="localhost", tls_ca=authority[0])
    assert not await reached(server, "verify-full", tls_ca=authority[0])


async def test_own_certificate_is_shown(server: PostgresServer, authority: Pair) -> None:
    """A server that asks for a certificate gets the inline one; without it, or with another's, the login is refused."""
    for name, right in (("certified", True), ("somebody", False)):
        own, key = certificate(name, authority)
        fields = {"username": "certified", "tls_ca": authority[0], "tls_certificate": own, "private_key": key}
        assert await reached(server, "verify-ca", **fields) == right
    assert not await reached(server, "verify-ca", username="certified", tls_ca=authority[0])
