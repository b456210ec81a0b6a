"""How the server is verified and how we show who we are: libpq's modes, with Vault's inline PEM."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

from broker.errors import InvalidRequest
from broker_postgresql.settings import ConnectionSettings
from broker_postgresql.target import SslMode, Target


def tls(target: Target, settings: ConnectionSettings) -> ssl.SSLContext | SslMode:
    """What asyncpg takes as `ssl`: the mode's name where there is nothing to verify with or to show.

    As with libpq, `require` verifies the chain where authorities are given; the host's name counts with `verify-full` alone.
    Raises `InvalidRequest` naming the fields.
    """
    authorities = settings.tls_ca or target.sslrootcert
    if target.sslmode == "disable":
        return target.sslmode
    if target.sslmode in ("allow", "prefer") and not (settings.tls_ca or settings.tls_certificate):
        return target.sslmode
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    # As libpq, on every Python: 3.13's default refuses certificates without key identifiers, as PostgreSQL's manual makes them.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    context.check_hostname = target.sslmode == "verify-full"
    if not authorities and not target.sslmode.startswith("verify"):
        context.verify_mode = ssl.CERT_NONE
    try:
        if authorities:
            context.load_verify_locations(target.sslrootcert or None, cadata=settings.tls_ca or None)
        if settings.tls_certificate:
            _load_own(context, settings)
        elif target.sslcert:
            context.load_cert_chain(target.sslcert, target.sslkey or None)
    except (ssl.SSLError, OSError, ValueError):
        raise InvalidRequest("tls_ca, tls_certificate, private_key: not PEM, or the key is not the certificate's") from None
    return context


def _load_own(context: ssl.SSLContext, settings: ConnectionSettings) -> None:
    # The ssl module reads certificates and keys from files only.
    with tempfile.TemporaryDirectory(prefix="broker-tls-") as directory:
        path = Path(directory) / "own.pem"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{settings.tls_certificate}\n{settings.private_key.reveal()}\n")
        context.load_cert_chain(path)
