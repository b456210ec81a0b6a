"""A connection is checked and a role rehearsed on a real server: what is missing is named, and nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.testing.broker import PROGRAM, BrokerProcess, connection_to
from broker.testing.database import Database
from broker.testing.postgresql import PostgresServer

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "check.md"
BARE, PASSWORD = "broker_login", "bare"
LIMIT_S = 120
CATALOGS = {
    "pg_roles": "SELECT rolname::text, rolcanlogin, rolsuper, rolvaliduntil::text FROM pg_roles",
    "pg_auth_members": "SELECT roleid, member, grantor, admin_option FROM pg_auth_members",
    "pg_shdescription": "SELECT objoid, classoid, description FROM pg_shdescription",
    # But for the routine that a session of the broker keeps in its temporary schema, and takes along when it ends.
    "pg_shdepend": """SELECT dbid, classid, objid, refobjid FROM pg_shdepend WHERE objid NOT IN (
        SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname ~ '^pg_temp')""",
    "pg_db_role_setting": "SELECT setrole, setconfig::text FROM pg_db_role_setting",
}
MAKES = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("checked")) as started:
        yield started


@pytest.fixture
async def bare(postgresql: PostgresServer) -> Database:
    """A server where the broker's login has CREATEROLE and nothing else, and a group that it may not hand out."""
    database = Database(postgresql)
    if not await database.has(BARE):
        await database.run(f"CREATE ROLE {BARE} LOGIN CREATEROLE PASSWORD '{PASSWORD}'; CREATE ROLE readers")
    await database.run(f"ALTER ROLE {BARE} CREATEROLE")
    return database


async def catalogs(database: Database) -> dict[str, set[tuple[Any, ...]]]:
    """What the server's shared catalogs hold of roles."""
    return {name: {tuple(row) for row in await database.ask(query)} for name, query in CATALOGS.items()}


async def connect(broker: BrokerProcess, database: Database, **fields: Any) -> Any:
    """Writes the connection `app` with the bare login."""
    body = connection_to(database.server, username=BARE, password=PASSWORD, **fields)
    return await broker.request("POST", "database/config/app", body)


def run_check(broker: BrokerProcess, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`broker connection check app`."""
    token = directory / "token"
    token.write_text(broker.root_token.reveal())
    return subprocess.run(
        [*PROGRAM, "connection", "check", "app", "--token-file", str(token), *options],
        env={**os.environ, "BROKER_ADDR": broker.address, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def normalised(output: str) -> str:
    """The output without what differs from run to run: times and the spaces before them."""
    return re.sub(r"[ ]+$", "", re.sub(r"\d+\.\d ms", "N ms", output), flags=re.MULTILINE).strip()


async def test_config_names_what_is_missing(broker: BrokerProcess, bare: Database) -> None:
    """A connection of a bare login is kept, and the answer names what it lacks with the statement that grants it."""
    before = await catalogs(bare)
    answer = await connect(broker, bare)
    assert answer.status == 200, answer
    assert f"missing: end sessions of dropped users; GRANT pg_signal_backend TO {BARE}" in answer.body["warnings"]
    assert await catalogs(bare) == before


async def test_config_refuses_a_login_that_can_make_nobody(broker: BrokerProcess, bare: Database) -> None:
    """Without CREATEROLE the connection is refused, by name and with the statement; unverified it is kept."""
    await bare.run(f"ALTER ROLE {BARE} NOCREATEROLE")
    try:
        answer = await connect(broker, bare)
        assert answer.status == 400
        assert f"ALTER ROLE {BARE} CREATEROLE" in answer.errors[0]
        assert (await connect(broker, bare, verify_connection=False)).status == 204
        checked = await broker.request("POST", "database/check/app")
        assert checked.status == 200
        assert (checked.data["ok"], checked.data["steps"]) == (False, [])
        assert [lack["need"] for lack in checked.data["missing"] if lack["fatal"]] == ["CREATEROLE"]
    finally:
        await bare.run(f"ALTER ROLE {BARE} CREATEROLE")


async def test_check_leaves_no_trace(broker: BrokerProcess, bare: Database) -> None:
    """A canary is made, logs in, is renewed and revoked, and the catalogs are afterwards as they were."""
    await connect(broker, bare)
    before = await catalogs(bare)
    answer = await broker.request("POST", "database/check/app")
    assert answer.status == 200, answer
    assert [(step["step"], step["ok"]) for step in answer.data["steps"]] == [
        ("made", True),
        ("logged in", True),
        ("renewed", True),
        ("revoked and proved absent", True),
    ], answer.data
    assert await catalogs(bare) == before
    assert answer.data["username"] in broker.audit_file.read_text()


async def test_command_shows_the_page(broker: BrokerProcess, bare: Database, tmp_path: Path) -> None:
    """On a bare CREATEROLE login the command prints what the page shows, and exits with 1; repaired, all is well."""
    await connect(broker, bare)
    await broker.request("DELETE", "database/roles/reports")
    role = {"db_name": "app", "grant_roles": ["readers"], "rehearse": False}
    await broker.request("POST", "database/roles/reports", role)
    await bare.run(f"REVOKE pg_signal_backend, readers FROM {BARE}")
    ran = run_check(broker, tmp_path)
    version = int((await bare.ask("SHOW server_version_num"))[0][0])
    if version >= 160_000:
        [shown] = re.findall(r"^```text\n\$ [^\n]*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert normalised(ran.stdout) == normalised(shown), ran.stdout + ran.stderr
    assert ran.returncode == 1
    asked = json.loads(run_check(broker, tmp_path, "--json").stdout)
    for lack in asked["missing"]:
        await bare.run(lack["remedy"])
    ran = run_check(broker, tmp_path)
    assert (ran.returncode, "bad" in ran.stdout) == (0, False), ran.stdout + ran.stderr
    await broker.request("DELETE", "database/roles/reports")


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ([MAKES, 'SELECT 1;\nGRANT SELECT ON missing TO "{{name}}"'], "statement 2, line 2, column 1: relation"),
        ([MAKES, "SELECT '{{name}}',\n  absent"], 'statement 2, line 2, column 3: column "absent"'),
        (['CREATE ROLE "{{name}}" LOGIN'], "refused with its password"),
        ([MAKES + "; COMMIT"], "statement 1"),
        (["SELECT 1"], "made no role"),
    ],
)
async def test_role_that_can_not_work_is_refused(
    broker: BrokerProcess, bare: Database, statements: list[str], said: str
) -> None:
    """Statements that fail, and users that could not log in, are told by their place; nothing is written and nothing stays."""
    await connect(broker, bare)
    before = await catalogs(bare)
    answer = await broker.request("POST", "database/roles/broken", {"db_name": "app", "creation_statements": statements})
    assert answer.status == 400, answer
    assert said in answer.errors[0]
    assert (await broker.request("GET", "database/roles/broken")).status == 404
    assert {row[0] for row in (await catalogs(bare))["pg_roles"] - before["pg_roles"] if row[1]} == set()
    untried = {"db_name": "app", "creation_statements": statements, "rehearse": False}
    assert (await broker.request("POST", "database/roles/broken", untried)).status in (200, 204)
    await broker.request("DELETE", "database/roles/broken")


async def test_role_is_written_while_its_database_is_away(broker: BrokerProcess, bare: Database) -> None:
    """A role of a database that does not answer is kept, and the answer says that it was not tried."""
    body = connection_to(bare.server, connection_url="postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres")
    await broker.request("POST", "database/config/away", {**body, "verify_connection": False})
    await broker.request("DELETE", "database/roles/later")
    answer = await broker.request("POST", "database/roles/later", {"db_name": "away", "creation_statements": [MAKES]})
    assert answer.status == 200, answer
    assert any(text.startswith("not rehearsed: ") for text in answer.body["warnings"])
