"""compose.yaml and the container file, as far as they can be checked without a container engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from broker.clock import stopwatch_s
from broker.config import load, parse
from broker.secret import Secret
from broker.testing import ports
from broker.testing.broker import PROGRAM
from broker.testing.postgresql import PostgresServer, embedded_binaries

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
CONTAINERFILE = ROOT / "etc" / "Containerfile"
CONFIG = ROOT / "etc" / "broker.container.toml"
PAGE = ROOT / "docs" / "operate" / "container.md"
LOGIN = ROOT / "etc" / "container" / "broker-login.sql"
SCRIPT_AT_FIRST_START = "./etc/container/broker-login.sql:/docker-entrypoint-initdb.d/10-broker-login.sql:ro"
"""The one file of the checkout that a container sees; the image of PostgreSQL runs what lies there when it makes its server."""
SECRETS = "/run/secrets/"
PINNED = re.compile(r"[a-z]+:\d+(\.\d+)*-[a-z-]+")
TELLING = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)
Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    """The container file's instructions: each word with what follows it, continued lines joined."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def services(compose: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(compose["services"].items())


def of(instructions: list[Instruction], word: str) -> list[str]:
    return [rest for known, rest in instructions if known == word]


def copied(instructions: list[Instruction]) -> list[tuple[list[str], str]]:
    """What is copied out of the checkout: the sources, and where to."""
    words = [shlex.split(rest) for rest in of(instructions, "COPY") if not rest.startswith("--from=")]
    return [(sources, target) for *sources, target in words]


def test_compose_file_follows_its_schema() -> None:
    """The schema is that of the Compose Specification."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_may_do_nothing_but_their_work(compose: dict[str, Any]) -> None:
    """A read-only root, no capability and no way to gain one, an ordinary user, a health check, limits; nothing of the host's."""
    allowed_to_write = {"/tmp", "/var/run/postgresql"}
    for name, service in services(compose):
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]), name
        assert service["pids_limit"] > 0, name
        assert {entry.partition(":")[0] for entry in service["tmpfs"]} <= allowed_to_write, name
        assert not {"cap_add", "privileged", "network_mode", "pid", "ipc", "devices", "env_file", "userns_mode"} & set(service)
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"] or volume == SCRIPT_AT_FIRST_START, f"{name}: {volume}"


def test_services_are_reached_from_this_machine_alone(compose: dict[str, Any]) -> None:
    """The broker's port is published on loopback, the database's not at all, and its network leads nowhere."""
    ports = {name: service.get("ports", []) for name, service in services(compose)}
    assert ports == {"postgresql": [], "broker": ["127.0.0.1:8200:8200"]}
    assert compose["networks"]["database"] == {"internal": True}
    assert compose["services"]["postgresql"]["networks"] == ["database"]


def test_images_are_pinned_by_tag(compose: dict[str, Any], instructions: list[Instruction]) -> None:
    """To a release and a distribution; both stages are made from the same image."""
    images = [service["image"] for _, service in services(compose) if "build" not in service]
    bases = [rest.partition(" ")[0] for rest in of(instructions, "FROM")]
    assert all(PINNED.fullmatch(image) for image in images + bases), images + bases
    assert len(set(bases)) == 1


def test_nothing_secret_stands_in_an_environment(compose: dict[str, Any], instructions: list[Instruction]) -> None:
    """What sounds like a secret is the path of a file, and each such file is a secret that the service is given."""
    for name, service in services(compose):
        given = {SECRETS + secret for secret in service["secrets"]}
        for variable, value in service.get("environment", {}).items():
            assert not TELLING.search(variable) or (variable.endswith("_FILE") and value in given), f"{name}: {variable}"
    for rest in of(instructions, "ENV"):
        for variable, value in (entry.split("=", 1) for entry in shlex.split(rest)):
            assert not TELLING.search(variable) or value == SECRETS.rstrip("/"), variable
    assert not of(instructions, "ARG")


def test_secrets_are_files_that_are_kept_out(compose: dict[str, Any], instructions: list[Instruction]) -> None:
    """Git ignores them, the image is built without them, and every one is used."""
    files = [secret["file"] for secret in compose["secrets"].values()]
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(f"/{Path(file).parent}/" in ignored for file in files)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert admitted == {Path(source).parts[0] for sources, _ in copied(instructions) for source in sources}
    used = {secret for _, service in services(compose) for secret in service["secrets"]}
    assert used == set(compose["secrets"])


def test_what_compose_names_is_there(compose: dict[str, Any]) -> None:
    """Files of the checkout, networks and volumes."""
    build = compose["services"]["broker"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]) == CONTAINERFILE
    assert SCRIPT_AT_FIRST_START in compose["services"]["postgresql"]["volumes"]
    assert (ROOT / SCRIPT_AT_FIRST_START.partition(":")[0]) == LOGIN
    for _, service in services(compose):
        assert set(service["networks"]) <= set(compose["networks"])


def test_nothing_stands_in_compose_that_only_one_engine_knows(compose: dict[str, Any]) -> None:
    """Podman takes no owner of a directory in memory, and podman-compose passes over `configs`: the login would not be made."""
    assert "configs" not in compose
    for name, service in services(compose):
        assert "configs" not in service, name
        options = {option.partition("=")[0] for entry in service["tmpfs"] for option in entry.partition(":")[2].split(",")}
        assert options <= {"mode", "size"}, name


def test_container_file_says_what_compose_says(compose: dict[str, Any], instructions: list[Instruction]) -> None:
    """The same user, port, volume and health check."""
    service = compose["services"]["broker"]
    assert of(instructions, "USER") == [service["user"]]
    assert of(instructions, "EXPOSE") == [service["ports"][0].rpartition(":")[2]]
    [volume] = json.loads(of(instructions, "VOLUME")[0])
    assert service["volumes"][0].partition(":")[2] == volume == str(load(CONFIG).store.directory)
    [check] = of(instructions, "HEALTHCHECK")
    assert json.loads(check.partition(" CMD ")[2]) == service["healthcheck"]["test"][1:]


def test_container_file_runs_a_command_that_there_is(instructions: list[Instruction]) -> None:
    """The entry point is the installed command, its options are real ones, and the configuration that it reads is copied there."""
    [entry], [command] = json.loads(of(instructions, "ENTRYPOINT")[0]), of(instructions, "CMD")
    subcommand, *options = json.loads(command)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(entry).name in scripts
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    told = subprocess.run([*PROGRAM, subcommand, "--help"], capture_output=True, text=True, check=True, env=environment)
    for option in options[::2]:
        assert re.search(rf"(?<!\S){option}\b", told.stdout), option
    assert options[1] in {target for _, target in copied(instructions)}
    assert Path(entry).parent.parent == Path(shlex.split(next(c for c in of(instructions, "COPY") if "--from=" in c))[-1])


def test_every_copied_file_is_there_and_enough_to_build(instructions: list[Instruction], tmp_path: Path) -> None:
    """From what is copied into the first stage, and nothing else, the package can be built."""
    first = next(place for place, (word, _) in enumerate(instructions[1:], 1) if word == "FROM")
    for sources, target in copied(instructions[:first]):
        for source in sources:
            place = tmp_path / target / Path(source).name if target.endswith("/") else tmp_path / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    for sources, _ in copied(instructions[first:]):
        assert all((ROOT / source).exists() for source in sources)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True)
    assert list((tmp_path / "dist").glob("*.whl"))


def test_configuration_is_valid() -> None:
    """It listens for the port that is published, and takes its key from the secret that compose gives."""
    config = load(CONFIG)
    assert config.server.endpoint() == ("0.0.0.0", 8200)
    assert config.seal.provider == "credential"
    assert config.seal.name in yaml.safe_load(COMPOSE.read_text())["services"]["broker"]["secrets"]


def test_configuration_with_a_certificate_is_valid() -> None:
    """The lines that its comment says to change give HTTPS."""
    text = CONFIG.read_text().replace("\nallow_plain_http = true", "").replace("#tls_", "tls_")
    assert parse(tomllib.loads(text)).server.tls_cert_file == Path("/run/secrets/broker-tls-certificate")


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is nobody else's as long as the test goes on."""
    with ports.reserve() as held:
        yield ports.number_of(held)


def test_broker_starts_as_in_the_container(tmp_path: Path, port: int, instructions: list[Instruction]) -> None:
    """With that configuration, its key from a file in the directory of secrets, and its health check content; only places differ."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "broker-master-key").write_text("A" * 43 + "=\n")
    config = tmp_path / "broker.toml"
    config.write_text(
        CONFIG.read_text().replace("0.0.0.0:8200", f"0.0.0.0:{port}").replace("/var/lib/broker", f"{tmp_path}/state")
    )
    subcommand, option, _ = json.loads(of(instructions, "CMD")[0])
    check = json.loads(of(instructions, "HEALTHCHECK")[0].partition(" CMD ")[2])
    environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(secrets)}
    running = subprocess.Popen(
        [*PROGRAM, subcommand, option, str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        asked = [sys.executable, *check[1:-1], check[-1].replace(":8200", f":{port}")]
        deadline = stopwatch_s() + 120
        while subprocess.run(asked, capture_output=True, check=False).returncode:
            assert running.poll() is None
            assert stopwatch_s() < deadline
        assert (tmp_path / "state" / "root-token").exists()
    finally:
        running.terminate()
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    binaries = embedded_binaries()
    assert binaries is not None
    with PostgresServer(binaries) as started:
        yield started


def test_the_login_is_made_as_the_container_makes_it(server: PostgresServer, tmp_path: Path) -> None:
    """By psql, with the password of the file; it can log in, and has what the manual asks for and no more.

    The superuser's password, which the image leaves in the server's environment, opens nothing afterwards.
    """
    password = Secret("it's $a \\ password")
    (tmp_path / "broker-database-password").write_text(password.reveal() + "\n")
    script = tmp_path / "login.sql"
    script.write_text(LOGIN.read_text().replace(SECRETS, f"{tmp_path}/"))
    subprocess.run(
        [
            *(str(server.binaries / "psql"), "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--file", str(script)),
            *("--host", server.host, "--port", str(server.port), "--username", server.superuser, "--dbname", "postgres"),
        ],
        env={**os.environ, "PGPASSWORD": server.superuser_password.reveal()},
        check=True,
        capture_output=True,
    )

    async def rights() -> tuple[Any, ...]:
        wire: Any = await asyncpg.connect(server.dsn("broker", password).reveal())
        row = await wire.fetchrow(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, pg_has_role('pg_signal_backend', 'USAGE'),"
            " has_parameter_privilege('log_error_verbosity', 'SET') FROM pg_roles WHERE rolname = current_user"
        )
        await wire.close()
        return tuple(row)

    assert asyncio.run(rights()) == (False, True, False, False, False, True, True)
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(asyncpg.connect(server.superuser_dsn().reveal()))


def test_page_puts_no_secret_into_arguments(tmp_path: Path) -> None:
    """The page's commands, as a shell runs them: the connection's body and the token reach curl by a pipe and a file."""
    (tmp_path / "secrets").mkdir()
    for program, text in {
        "curl": 'printf "%s\\n" "$@" > arguments; cat > body; cp "${2#@}" header',
        "docker": 'test "$1 $2" = "compose up" || echo hvs.the-token',
    }.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "secrets" / "broker-database-password").write_text("the+pass/word=\n")
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [start] = (block for block in blocks if "compose up" in block)
    [connect] = (block for block in blocks if "database/config" in block)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-euc", start + connect], cwd=tmp_path, env=environment, check=True)
    said = (tmp_path / "arguments").read_text()
    assert "the+pass" not in said
    assert "hvs." not in said
    assert (tmp_path / "header").read_text() == "X-Vault-Token: hvs.the-token\n"
    assert (tmp_path / "secrets" / "token-header").stat().st_mode & 0o077 == 0
    body = json.loads((tmp_path / "body").read_text())
    assert (body["username"], body["password"]) == ("broker", "the+pass/word=")
    assert body["connection_url"].startswith("postgresql://{{username}}:{{password}}@postgresql:")
