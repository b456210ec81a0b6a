"""`broker doctor` before the first start: what is not there yet is no fault, and what would stop that start is named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.cli.doctor import doctor

Told = Callable[[str], tuple[int, str]]


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """Exit status and report for these sections of a configuration whose state directory is `state`."""

    def run(sections: str) -> tuple[int, str]:
        (tmp_path / "broker.toml").write_text(f'[store]\ndirectory = "{tmp_path}/state"\n{sections}\n')
        status = 0
        try:
            doctor(tmp_path / "broker.toml")
        except typer.Exit as ended:
            status = ended.exit_code
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("made", [False, True])
def test_what_the_first_start_makes_is_no_fault(told: Told, tmp_path: Path, made: bool) -> None:  # noqa: FBT001 - a parameter
    """Neither a state directory without a store nor a missing one; a key file, too, is made then."""
    if made:
        (tmp_path / "state").mkdir(mode=0o700)
    status, report = told("")
    assert status == 0, report
    assert report.count("the first start makes it") == 2


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ('[seal]\nprovider = "environment"\nname = "BROKER_NO_KEY"', "key  the environment variable BROKER_NO_KEY is not set"),
        ('[seal]\nprovider = "credential"\nname = "no.key"', "key  there is no systemd credential no.key"),
        ('[seal]\nprovider = "credential"', "config  seal.name: missing"),
        ('[seal]\npath = "/nowhere/key"', "key  seal.path: there is no directory /nowhere: make it"),
        ('[seal]\npath = "/"', "key  the key file / is not a regular file"),
        (
            '[server]\ntls_cert_file = "/nowhere/cert"\ntls_key_file = "/"',
            "certificate  server.tls_cert_file: /nowhere/cert can't be read (No such file or directory)",
        ),
        (
            '[server]\ntls_cert_file = "/nowhere/cert"\ntls_key_file = "/"',
            "certificate  server.tls_key_file: / can't be read (Is a directory)",
        ),
    ],
)
def test_what_would_stop_the_first_start_is_named(
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: str,
    line: str,
    made: bool,  # noqa: FBT001
) -> None:
    """A key that is not there, or a certificate that can't be read, with the setting or the place."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    if made:
        (tmp_path / "state").mkdir(mode=0o700)
    status, report = told(sections)
    assert status == 1, report
    subject, _, text = line.partition("  ")
    assert f"bad   {subject:<28} {text}" in report


def test_store_that_was_lost_is_no_first_start(told: Told, tmp_path: Path) -> None:
    """Somebody wrote the audit log, so there was a store."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "audit.log").touch(mode=0o600)
    assert told("")[0] == 0
    (tmp_path / "state" / "audit.log").write_text("{}\n")
    status, report = told("")
    assert status == 1
    assert f"there is none in {tmp_path}/state, yet there is an audit log" in report


@pytest.mark.parametrize(("days", "status"), [(1, 0), (-1, 1)])
def test_certificate_is_looked_at(told: Told, tmp_path: Path, days: int, status: int) -> None:
    """One that is valid says until when, one that has ended is a fault."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    ends = datetime.fromtimestamp((tmp_path.stat().st_mtime // 1) + days * 86_400, UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = builder.not_valid_before(ends - timedelta(days=9)).not_valid_after(ends).sign(key, hashes.SHA256())
    (tmp_path / "cert").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    found, report = told(f'[server]\ntls_cert_file = "{tmp_path}/cert"\ntls_key_file = "{tmp_path}/key"')
    assert found == status, report
    assert f"{'until' if days > 0 else 'ended on'} {ends:%Y-%m-%d}" in report
