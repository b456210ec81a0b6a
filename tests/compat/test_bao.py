"""OpenBao's own command `bao`, and its agent, against a running broker: to them it is a server like any other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from broker.secret import Secret
from broker.testing.broker import CREATE_USER, BrokerProcess, connection_to, until
from broker.testing.postgresql import PostgresServer

LIMIT_S = 120
Said: TypeAlias = "subprocess.CompletedProcess[str]"
Bao: TypeAlias = Callable[..., Said]
AGENT = """
pid_file = "{place}/pid"
vault {{ address = "{address}" }}
auto_auth {{
  method "token_file" {{ config = {{ token_file_path = "{place}/token" }} }}
}}
template {{
  contents = <<END
{{{{ with secret "database/creds/brief" }}}}{{{{ .LeaseID }}}} {{{{ .Data.username }}}} {{{{ .Data.password }}}}{{{{ end }}}}
END
  destination = "{place}/rendered"
}}
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker on a TCP port, shared by this module."""
    with BrokerProcess(tmp_path_factory.mktemp("bao"), '[server]\naddress = "127.0.0.1:0"\n') as started:
        yield started


def environment(broker: BrokerProcess, token: str) -> dict[str, str]:
    """What the command goes by. Its home is where `login` keeps the token."""
    return {"PATH": os.environ["PATH"], "HOME": str(broker.directory), "BAO_ADDR": broker.address, "BAO_TOKEN": token}


@pytest.fixture(scope="module")
def bao(broker: BrokerProcess, bao_program: str) -> Bao:
    """Runs `bao <arguments>` to its end, with the root token unless `token` says otherwise."""

    def run(*arguments: str, token: str | None = None) -> Said:
        shown = broker.root_token.reveal() if token is None else token
        return subprocess.run(
            [bao_program, *arguments],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(broker, shown),
        )

    return run


@pytest.fixture(scope="module")
def told(bao: Bao) -> Callable[..., Any]:
    """What `bao <arguments>` answers as JSON; it must succeed."""

    def run(*arguments: str) -> Any:
        verb = 2 if arguments[0] in ("lease", "token", "secrets") else 1
        said = bao(*arguments[:verb], "-format=json", *arguments[verb:])
        assert said.returncode == 0, said.stderr
        return json.loads(said.stdout)

    return run


@pytest.fixture(scope="module")
def roles(bao: Bao, postgresql_18: PostgresServer) -> None:
    """The roles `app`, and `brief`, whose leases end soon; written by the command, which sends all values as text."""
    fields = connection_to(postgresql_18)
    written = [bao("write", "database/config/main", *(f"{key}={value}" for key, value in fields.items()))]
    for name, ttl, longest in (("app", "10m", "1h"), ("brief", "3s", "6s")):
        times = [f"default_ttl={ttl}", f"max_ttl={longest}"]
        written.append(bao("write", f"database/roles/{name}", "db_name=main", f"creation_statements={CREATE_USER}", *times))
    assert [said.returncode for said in written] == [0, 0, 0], written


async def can_log_in(server: PostgresServer, username: str, password: str) -> bool:
    try:
        connection = await asyncpg.connect(server.dsn(username, Secret(password)).reveal())
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        return False
    await connection.close()
    return True


def test_status_is_that_of_an_open_server(bao: Bao) -> None:
    """It exits with 0 only where the server is initialised and unsealed; it asks for seal status and leader."""
    said = bao("status", token="")
    assert said.returncode == 0
    assert "Sealed          false" in said.stdout


def test_what_is_written_is_read_listed_and_deleted(bao: Bao, told: Callable[..., Any], roles: None) -> None:
    """In each of its formats; durations written as text come back as numbers, which it shows as durations."""
    shown = told("read", "database/roles/app")["data"]
    assert (shown["creation_statements"], shown["default_ttl"]) == ([CREATE_USER], 600)
    assert "default_ttl: 600" in bao("read", "-format=yaml", "database/roles/app").stdout
    assert bao("read", "-field=max_ttl", "database/roles/app").stdout == "3600"
    assert told("list", "database/roles") == ["app", "brief"]
    assert bao("list", "-detailed", "database/config").stdout.split() == ["Keys", "----", "main"]
    assert told("secrets", "list")["database/"]["type"] == "database"
    assert bao("delete", "database/roles/none").returncode == 0


@pytest.mark.parametrize("path", ["database/roles/app", "database/creds/app", "sys/leases/renew", "database/none"])
def test_a_list_of_what_has_none_is_an_empty_one(bao: Bao, roles: None, path: str) -> None:
    """It says so, as it does of OpenBao, and does not fail at an answer that it can't read."""
    said = bao("list", path)
    assert (said.returncode, said.stderr.strip()) == (2, f"No value found at {path}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("read", "database/creds/none"), "Code: 400. Errors:\n\n* unknown role: none"),
        (("read", "database/roles/none"), "No value found at database/roles/none"),
        (("read", "-namespace=team", "database/creds/app"), "No value found at database/creds/app"),
        (
            ("read", "-wrap-ttl=60", "database/creds/app"),
            "Code: 400. Errors:\n\n* X-Vault-Wrap-TTL: response wrapping is not supported",
        ),
        (("write", "-force", "database/creds/app"), "Code: 405. Errors:\n\n* 1 error occurred:\n\t* unsupported operation"),
        (("lease", "lookup", "none"), "Code: 400. Errors:\n\n* invalid lease"),
        (("lease", "renew", "none"), "Code: 400. Errors:\n\n* lease not found"),
        (("token", "lookup", "none"), "Code: 403. Errors:\n\n* bad token"),
        (("login", "-no-print", "none"), "Code: 403. Errors:"),
    ],
)
def test_refusals_are_read(bao: Bao, roles: None, arguments: tuple[str, ...], text: str) -> None:
    """Exit status 2, and the broker's words."""
    said = bao(*arguments)
    assert said.returncode == 2
    assert text in said.stderr


async def test_a_lease_lives_and_ends(bao: Bao, told: Callable[..., Any], roles: None, postgresql_18: PostgresServer) -> None:
    """Read, looked up, renewed past its maximum with a warning, listed, revoked at once."""
    issued = told("read", "database/creds/app")
    lease, login = issued["lease_id"], (issued["data"]["username"], issued["data"]["password"])
    assert await can_log_in(postgresql_18, *login)
    assert told("lease", "lookup", lease)["data"]["renewable"] is True
    renewed = told("lease", "renew", "-increment=5h", lease)
    assert 3_000 < renewed["lease_duration"] <= 3_600
    assert "exceeded the effective max_ttl" in renewed["warnings"][0]
    assert lease.rpartition("/")[2] in told("list", "sys/leases/lookup/database/creds/app")
    assert bao("lease", "revoke", "-sync", lease).stdout == f"Success! Revoked lease: {lease}\n"
    assert not await can_log_in(postgresql_18, *login)


async def test_leases_end_in_the_background_unless_waited_for(
    bao: Bao, told: Callable[..., Any], roles: None, postgresql_18: PostgresServer
) -> None:
    """Without `-sync` it tells the broker not to wait; `-prefix` and `-force` go by path."""
    logins = [told("read", "database/creds/app") for _ in range(3)]
    queued = "All revocation operations queued successfully!\n"
    assert bao("lease", "revoke", logins[0]["lease_id"]).stdout == queued
    assert bao("lease", "revoke", "-prefix", "database/creds/app").stdout == queued
    assert bao("lease", "revoke", "-prefix", "-sync", "database/creds/app").returncode == 0
    assert bao("lease", "revoke", "-prefix", "-force", "database/creds/app").returncode == 0
    for login in logins:
        assert not await can_log_in(postgresql_18, login["data"]["username"], login["data"]["password"])


def test_tokens(bao: Bao, told: Callable[..., Any]) -> None:
    """Made, looked up, renewed, logged in with, and ended: by itself, by accessor, and by the path that made them."""
    first, second, third = (told("token", "create", "-ttl=1h", "-policy=default", "-metadata=team=a")["auth"] for _ in range(3))
    assert first["policies"] == ["default"]
    assert told("token", "lookup", "-accessor", first["accessor"])["data"]["meta"] == {"team": "a"}
    assert told("token", "renew", "-increment=30m", first["client_token"])["auth"]["lease_duration"] == 1_800
    own = first["client_token"]
    assert bao("print", "token", token=own).stdout.strip() == own
    assert bao("login", "-no-store", own, token="").returncode == 0
    assert bao("token", "revoke", "-self", token=own).returncode == 0
    assert bao("token", "revoke", "-accessor", second["accessor"]).returncode == 0
    assert bao("token", "revoke", "-mode=path", "auth/token/create").returncode == 0
    for ended in (first, second, third):
        assert bao("token", "lookup", token=ended["client_token"]).returncode == 2


async def test_the_agent_renders_renews_and_asks_again(
    bao_program: str,
    broker: BrokerProcess,
    told: Callable[..., Any],
    roles: None,
    tmp_path: Path,
    postgresql_18: PostgresServer,
) -> None:
    """Its template holds a login that works, renewed while that can be, and a new one when the lease is at its end; SIGTERM ends it."""
    made = told("token", "create", "-ttl=1h", "-display-name=agent")["auth"]
    (tmp_path / "token").write_text(made["client_token"])
    (tmp_path / "agent.hcl").write_text(AGENT.format(place=tmp_path, address=broker.address))
    seen: list[str] = []

    async def another_that_works() -> bool:
        # Read anew each time: where the machine is busy, what was rendered may have ended before it was tried.
        rendered = (tmp_path / "rendered").read_text().split() if (tmp_path / "rendered").exists() else []
        if len(rendered) != 3 or rendered[0] in seen or not await can_log_in(postgresql_18, *rendered[1:]):
            return False
        seen.append(rendered[0])
        return True

    with (tmp_path / "agent.log").open("wb") as log:
        agent = await asyncio.create_subprocess_exec(
            bao_program, "agent", f"-config={tmp_path}/agent.hcl", stdout=log, stderr=log, env=environment(broker, "")
        )
    try:
        await until(another_that_works)
        await until(another_that_works)
        agent.terminate()
        assert await agent.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
        await agent.wait()
    entries = [json.loads(line) for line in broker.audit_file.read_text().splitlines()]
    asked = {entry["request"]["path"] for entry in entries if entry.get("auth", {}).get("display_name") == "token-agent"}
    assert {"database/creds/brief", "sys/leases/renew"} <= asked
