"""`broker serve` as whoever runs it meets it: its files, its signals, its doors, and how it refuses."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.testing.broker import SERVE, BrokerFailed, BrokerProcess, connection_to, until
from broker.testing.postgresql import PostgresServer
from broker.testing.proxy import Proxy

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

EX_CONFIG, EX_TEMPFAIL, EX_DATAERR, EX_NOPERM = 78, 75, 65, 77


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def events(broker: BrokerProcess) -> list[str]:
    return [str(line["event"]) for line in broker.log_lines()]


async def write_unverified_connection(broker: BrokerProcess) -> None:
    fields = {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": "postgresql://{{username}}:{{password}}@h/d?sslmode=disable",
    }
    answer = await broker.request("PUT", "database/config/kept", {**fields, "verify_connection": False})
    assert answer.status == 204, answer


# files ----------------------------------------------------------------------------------------------------------------


def test_first_start_makes_key_store_and_token(process: BrokerProcess) -> None:
    """Key, store and root token come in this order, before it says that it is ready, and are nobody else's to read."""
    said = events(process)
    assert [said.index(next(line for line in said if word in line)) for word in ("master key", "root token", "ready")] == [
        0,
        1,
        2,
    ]
    assert mode(process.state) == 0o700
    assert {path.name: mode(path) for path in process.state.iterdir()} == dict.fromkeys(
        ["audit.log", "master.key", "root-token", "store.db", "store.db-shm", "store.db-wal", "store.lock"], 0o600
    )


async def test_log_names_the_token_file_not_the_token(process: BrokerProcess) -> None:
    """The path of the root token's file is logged, and the token is not, even after it was used."""
    assert (await process.request("GET", "auth/token/lookup-self")).status == 200
    assert str(process.state / "root-token") in process.log()
    assert process.root_token.reveal() not in process.log()


async def test_second_start_keeps_everything(process: BrokerProcess) -> None:
    """Key, root token, tokens and documents are those of the first start; a token file that was moved away stays away."""
    await write_unverified_connection(process)
    made = await process.request("POST", "auth/token/create", {"ttl": "1h"})
    token, root = made.body["auth"]["client_token"], process.root_token
    key = (process.state / "master.key").read_bytes()
    (process.state / "root-token").rename(process.directory / "moved")
    assert process.stop() == 0
    process.start()
    assert not (process.state / "root-token").exists()
    (process.directory / "moved").rename(process.state / "root-token")
    assert process.root_token == root
    assert (process.state / "master.key").read_bytes() == key
    assert (await process.request("LIST", "database/config")).data == {"keys": ["kept"]}
    assert (await process.request("GET", "auth/token/lookup-self", token=token)).status == 200
    assert [line for line in events(process) if "root token" in line] == ["wrote the root token; move it to a safe place"]


async def test_killed_at_its_first_start_it_starts_again(tmp_path: Path) -> None:
    """A first start that was cut off after the token file was written leaves nothing that hinders the second, nor a valid token."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "root-token").write_text("hvs.leftover\n")
    with BrokerProcess(tmp_path) as broker:
        assert broker.root_token.reveal() != "hvs.leftover"
        assert (await broker.request("GET", "auth/token/lookup-self", token="hvs.leftover")).status == 403


# signals --------------------------------------------------------------------------------------------------------------


async def test_sigterm_finishes_what_is_in_flight(tmp_path: Path, postgresql_18: PostgresServer) -> None:
    """A request that waits for its database is answered after SIGTERM, new ones find nobody, and the exit status is 0."""
    async with Proxy(postgresql_18.host, postgresql_18.port) as proxy:
        url = postgresql_18.url_template().replace(str(postgresql_18.port), str(proxy.port))
        server = f'[server]\naddress = "unix:{tmp_path / "s"}"\ndrain_s = 200\n'
        with BrokerProcess(tmp_path, server + "[engines]\nconnect_timeout_s = 200\n") as broker:
            proxy.stall()
            fields = connection_to(postgresql_18, connection_url=url)
            asked = asyncio.create_task(broker.request("PUT", "database/config/pg", fields))
            await proxy.arrivals.acquire()
            broker.signal(signal.SIGTERM)

            async def refuses() -> bool:
                try:
                    await broker.request("GET", "sys/health")
                except aiohttp.ClientError:
                    return True
                return False

            await until(refuses)
            assert broker.running
            assert not asked.done()
            proxy.resume()
            assert (await asked).status == 204
            assert await asyncio.to_thread(broker.wait) == 0


async def test_sigterm_waits_no_longer_than_its_limit(tmp_path: Path, postgresql_18: PostgresServer) -> None:
    """A request that never ends is cut off after `drain_s`, and the exit status is 0 all the same."""
    server = f'[server]\naddress = "unix:{tmp_path / "s"}"\ndrain_s = 0.5\n'
    async with Proxy(postgresql_18.host, postgresql_18.port) as proxy:
        url = postgresql_18.url_template().replace(str(postgresql_18.port), str(proxy.port))
        with BrokerProcess(tmp_path, server + "[engines]\nconnect_timeout_s = 200\n") as broker:
            proxy.stall()
            fields = connection_to(postgresql_18, connection_url=url)
            asked = asyncio.create_task(broker.request("PUT", "database/config/pg", fields))
            await proxy.arrivals.acquire()
            assert await asyncio.to_thread(broker.stop) == 0
            with pytest.raises(aiohttp.ClientError):
                await asked


async def test_sighup_reopens_the_audit_log(process: BrokerProcess, cli: Cli) -> None:
    """After a rename and SIGHUP, entries go to a new file; old and new together verify."""
    await process.request("GET", "auth/token/lookup-self")
    old = process.audit_file.rename(process.state / "audit.log.1")
    process.signal(signal.SIGHUP)

    async def reopened() -> bool:
        return process.audit_file.exists()

    await until(reopened)
    before = old.stat().st_size
    answer = await process.request("GET", "auth/token/lookup-self")
    assert old.stat().st_size == before
    ids = [json.loads(line).get("request", {}).get("id") for line in process.audit_file.read_text().splitlines()]
    assert ids.count(answer.body["request_id"]) == 2
    verified = cli("audit", "verify", "--config", process.config, old, process.audit_file)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_systemd_hears_of_readiness_and_of_the_end(tmp_path: Path) -> None:
    """READY=1 comes when it listens, STOPPING=1 after SIGTERM."""
    broker = BrokerProcess(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen([*SERVE, broker.config], env=environment, stderr=subprocess.DEVNULL) as serving:
            try:
                assert notify.recv(100) == b"READY=1"
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(tmp_path / "http.sock"))
                serving.terminate()
                assert notify.recv(100) == b"STOPPING=1"
                assert serving.wait(120) == 0
            finally:
                serving.kill()


def test_closed_standard_streams_are_nobody_elses(tmp_path: Path) -> None:
    """No file or socket of the broker gets their numbers, and it starts, runs and ends as usual."""
    config = BrokerProcess(tmp_path).config
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SERVE, config]
        with subprocess.Popen(command, env=environment) as serving:
            try:
                assert notify.recv(100) == b"READY=1"
                assert {str(Path(f"/proc/{serving.pid}/fd/{number}").readlink()) for number in range(3)} == {os.devnull}
                serving.terminate()
                assert serving.wait(120) == 0
            finally:
                serving.kill()


# doors ----------------------------------------------------------------------------------------------------------------


def test_unix_socket_is_for_its_group(process: BrokerProcess) -> None:
    """The socket has mode 0660 by default, and is gone after the end."""
    path = Path(process.address.removeprefix("unix:"))
    assert mode(path) == 0o660
    process.stop()
    assert not path.exists()


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "cert.pem", directory / "key.pem"
    files[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


async def test_https_is_tls_1_2_and_up(tmp_path: Path) -> None:
    """With a certificate it serves HTTPS; TLS 1.2 and 1.3 are answered, 1.1 and plain HTTP are not."""
    cert, key = certificate(tmp_path)
    server = f'[server]\naddress = "127.0.0.1:0"\ntls_cert_file = "{cert}"\ntls_key_file = "{key}"\n'
    with BrokerProcess(tmp_path, server) as broker:
        assert broker.address.startswith("https://127.0.0.1:")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            broker.tls = ssl.create_default_context(cafile=cert)
            broker.tls.check_hostname = False
            broker.tls.minimum_version = broker.tls.maximum_version = version
            assert (await broker.request("GET", "auth/token/lookup-self")).status == 200
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        # At its usual security level OpenSSL would not even offer TLS 1.1.
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        broker.tls = old
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await broker.request("GET", "sys/health")
        assert isinstance(refused.value.os_error, ssl.SSLError | ConnectionResetError)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(broker.address.replace("https", "http"))


def test_plain_http_for_other_machines_is_refused(tmp_path: Path, cli: Cli) -> None:
    """An address that other machines reach needs a certificate, or the permission in so many words."""
    broker = BrokerProcess(tmp_path, '[server]\naddress = "0.0.0.0:0"\n')
    refused = cli("serve", "--config", broker.config)
    assert refused.returncode == EX_CONFIG
    assert "server" in refused.stderr
    assert "allow_plain_http" in refused.stderr
    with BrokerProcess(tmp_path, '[server]\naddress = "0.0.0.0:0"\nallow_plain_http = true\n') as allowed:
        assert allowed.address.startswith("http://0.0.0.0:")


# refusals to start ----------------------------------------------------------------------------------------------------


def test_every_configuration_mistake_is_named(tmp_path: Path, cli: Cli) -> None:
    """Exit status 78, and one line for each mistake with its key and what is allowed; values are not repeated."""
    path = tmp_path / "broker.toml"
    path.write_text(
        """
        [server]
        adress = "127.0.0.1:8200"
        max_in_flight = 0
        [leases]
        default_ttl = "soon"
        [audit]
        device = "syslog"
        [log]
        level = "loud"
        [stores]
        """
    )
    refused = cli("serve", "--config", path)
    assert refused.returncode == EX_CONFIG
    lines = refused.stderr.splitlines()
    for key in ("server.adress", "server.max_in_flight", "leases.default_ttl", "audit.device", "log.level", "stores"):
        assert [line for line in lines if line.startswith(f"broker: {key}: ")], (key, lines)
    assert "address, " in next(line for line in lines if "server.adress" in line)
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('[server]\naddress = "localhost"', "server"),
        ('[server]\naddress = "unix:relative"', "server"),
        ('[server]\ntls_cert_file = "/nowhere.pem"', "tls_key_file"),
        ('[server]\naddress = "127.0.0.1:0"\ntls_cert_file = "/nowhere.pem"\ntls_key_file = "/nowhere.pem"', "tls_cert_file"),
        ('[seal]\nprovider = "environment"', "seal.name"),
        ("not toml", "broker.toml"),
    ],
)
def test_configuration_mistake_is_exit_status_78(tmp_path: Path, cli: Cli, content: str, key: str) -> None:
    """Mistakes that only show between two keys, or at the file behind one, are named with their key as well."""
    broker = BrokerProcess(tmp_path, content)
    refused = cli("serve", "--config", broker.config)
    assert refused.returncode == EX_CONFIG, refused.stderr
    assert key in refused.stderr
    assert "Traceback" not in refused.stderr


def test_missing_configuration_is_named(tmp_path: Path, cli: Cli) -> None:
    """A file that is not there is a mistake of the configuration."""
    refused = cli("serve", "--config", tmp_path / "absent.toml")
    assert refused.returncode == EX_CONFIG
    assert str(tmp_path / "absent.toml") in refused.stderr


def test_address_in_use_is_named(process: BrokerProcess, tmp_path: Path, cli: Cli) -> None:
    """A second broker on the same socket is told that somebody listens there."""
    (tmp_path / "other").mkdir()
    other = BrokerProcess(tmp_path / "other", f'[server]\naddress = "{process.address}"\n')
    refused = cli("serve", "--config", other.config)
    assert refused.returncode == EX_CONFIG
    assert "another process is listening" in refused.stderr


async def test_second_daemon_on_the_same_store_is_refused(process: BrokerProcess, tmp_path: Path, cli: Cli) -> None:
    """It says which process has the store and what to do, and the first one does not notice."""
    (tmp_path / "other").mkdir()
    other = BrokerProcess(tmp_path / "other", f'[store]\ndirectory = "{process.state}"\n')
    refused = cli("serve", "--config", other.config)
    assert refused.returncode == EX_TEMPFAIL
    assert f"process {process.pid}" in refused.stderr
    assert "stop it" in refused.stderr
    assert (await process.request("GET", "auth/token/lookup-self")).status == 200


def test_start_without_its_key_is_refused(process: BrokerProcess, cli: Cli) -> None:
    """A store whose key file is gone is not given a new key: the start fails and says what is missing."""
    process.stop()
    (process.state / "master.key").rename(process.directory / "master.key")
    refused = cli("serve", "--config", process.config)
    assert refused.returncode == EX_NOPERM
    assert "master.key" in refused.stderr
    assert not (process.state / "master.key").exists()


def test_process_that_fails_to_start_says_so(tmp_path: Path) -> None:
    """The testing kit's own promise: a broker that ends at its start is an error that shows its log."""
    with pytest.raises(BrokerFailed, match="unknown key"):
        BrokerProcess(tmp_path, "[nonsense]\n").start()


async def test_dev_broker_prints_its_token_and_leaves_nothing(tmp_path: Path) -> None:
    """`--dev` needs no configuration, prints a root token that works, listens on loopback and removes its state."""
    command = [*SERVE[:-1], "--dev", "--address", "127.0.0.1:0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    serving = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert serving.stdout is not None
        address = (await serving.stdout.readline()).decode().split()[-1]
        token = (await serving.stdout.readline()).decode().split()[-1]
        async with (
            aiohttp.ClientSession(headers={"X-Vault-Token": token}) as session,
            session.get(f"{address}/v1/auth/token/lookup-self") as response,
        ):
            assert response.status == 200
        assert [name.startswith("broker-dev-") for name in names_in(tmp_path)] == [True]
        serving.terminate()
        assert await serving.wait() == 0
        assert names_in(tmp_path) == []
    finally:
        if serving.returncode is None:
            serving.kill()


def test_dev_broker_stays_on_loopback(cli: Cli) -> None:
    """`--dev` off loopback is refused."""
    refused = cli("serve", "--dev", "--address", "0.0.0.0:0")
    assert refused.returncode == EX_CONFIG
    assert "loopback" in refused.stderr


# doctor ---------------------------------------------------------------------------------------------------------------


async def test_doctor_finds_a_good_installation_good(process: BrokerProcess, postgresql_18: PostgresServer, cli: Cli) -> None:
    """Beside the running daemon and with it stopped: exit status 0; stopped, each connection is asked."""
    await process.request("PUT", "database/config/main", connection_to(postgresql_18))
    beside = cli("doctor", "--config", process.config)
    assert beside.returncode == 0, beside.stdout + beside.stderr
    assert f"process {process.pid}" in beside.stdout
    process.stop()
    stopped = cli("doctor", "--config", process.config)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    for words in ("ok    plugins", "ok    config", "ok    store", "ok    permissions", "ok    connection main"):
        assert words in stopped.stdout.replace("postgresql-database-plugin", "plugins"), (words, stopped.stdout)
    assert "18." in next(line for line in stopped.stdout.splitlines() if "connection main" in line)


async def test_doctor_names_everything_that_is_wrong(process: BrokerProcess, cli: Cli) -> None:
    """A file open to others and a database that does not answer are named, and the exit status is 1."""
    url = "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres"
    fields = {"plugin_name": "postgresql-database-plugin", "connection_url": url, "username": "u", "password": "hunter2-secret"}
    await process.request("PUT", "database/config/down", {**fields, "verify_connection": False})
    process.stop()
    (process.state / "master.key").chmod(0o644)
    found = cli("doctor", "--config", process.config)
    assert found.returncode == 1
    assert "master.key" in found.stdout
    (process.state / "audit.log").chmod(0o644)
    (process.state / "master.key").chmod(0o600)
    found = cli("doctor", "--config", process.config)
    assert found.returncode == 1
    assert "bad   permissions" in found.stdout
    assert "bad   connection down" in found.stdout
    assert "hunter2" not in found.stdout


def test_doctor_names_configuration_mistakes(tmp_path: Path, cli: Cli) -> None:
    """It goes on after a configuration that can't be read, and the exit status is 1."""
    (tmp_path / "broker.toml").write_text("[server]\nadress = 1\n")
    found = cli("doctor", "--config", tmp_path / "broker.toml")
    assert found.returncode == 1
    assert "server.adress: unknown key" in found.stdout
    assert "ok    python" in found.stdout


# audit verify ---------------------------------------------------------------------------------------------------------


async def test_audit_verify_beside_the_daemon(process: BrokerProcess, cli: Cli) -> None:
    """An intact log is found intact while it grows; an altered line is named; so is a tail that was cut off."""
    for _ in range(5):
        # Each changes the store, which so learns of the newest entry.
        await process.request("POST", "auth/token/create", {"ttl": "1h"})

    def verified(*files: Path) -> subprocess.CompletedProcess[str]:
        return cli("audit", "verify", "--config", process.config, *files)

    intact = verified()
    assert intact.returncode == 0, intact.stdout + intact.stderr
    assert "intact" in intact.stdout
    lines = process.audit_file.read_bytes().splitlines(keepends=True)
    altered = process.directory / "altered.log"
    altered.write_bytes(
        b"".join([*lines[:3], lines[3].replace(b"127.0.0.1", b"127.0.0.2").replace(b"root", b"toor"), *lines[4:]])
    )
    found = verified(altered)
    assert found.returncode == 1
    assert "4" in found.stdout
    cut = process.directory / "cut.log"
    cut.write_bytes(b"".join(lines[:-4]))
    found = verified(cut)
    assert found.returncode == 1, found.stdout
    missing = process.directory / "missing.log"
    missing.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    assert verified(missing).returncode == 1
