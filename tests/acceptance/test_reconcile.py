"""`broker reconcile` against a running broker and real servers: after a restore of the store, of sessions, and what its statuses say."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.cli.reconcile import AGREE, DIFFER, INCOMPLETE
from broker.testing.broker import PROGRAM, BrokerProcess, connection_to, until
from broker.testing.database import ENDED, Database
from broker.testing.leasing import issue, look_up, revoke, users_of, write_connection, write_role
from broker.testing.postgresql import PostgresServer

BACKUP = Path(__file__).parents[2] / "docs" / "operate" / "backup.md"
QUIET = "[leases]\nreconcile = 0\nsweep = 3600\n"
"""Neither job comes by itself while a test looks."""
LIMIT_S, UNAVAILABLE = 120, 75

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A running broker of the test's own."""
    with BrokerProcess(tmp_path, QUIET) as started:
        yield started


async def prepare(broker: BrokerProcess, server: PostgresServer, login: dict[str, str], **roles: int) -> None:
    """The connection `pg` and roles, each with so many prepared users."""
    await write_connection(broker, server, scram_iterations=1, **login)
    for name, prepared in roles.items():
        await write_role(broker, name, prepared_users=prepared)


def run(broker: BrokerProcess, *options: str, token: str | None = None, **streams: Any) -> subprocess.CompletedProcess[str]:
    """`broker reconcile`, its output in pipes unless told otherwise."""
    file = broker.directory / "token"
    file.write_text(broker.root_token.reveal() if token is None else token)
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [*PROGRAM, "reconcile", *options, "--token-file", str(file)],
        env={**os.environ, "BROKER_ADDR": broker.address, "TERM": "xterm", "COLUMNS": "80"},
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        **captured,
    )


def found(broker: BrokerProcess, *options: str) -> tuple[int, dict[str, Any]]:
    """The command's status, and what it found on the only connection."""
    done = run(broker, "--json", *options)
    [report] = json.loads(done.stdout)["connections"]
    assert not report["error"], report
    return done.returncode, report


def documented(heading: str) -> list[str]:
    """The commands of a section of the page about backups, without those that start and stop the broker."""
    [section] = re.findall(rf"^## {heading}\n(.*?)^(?=## )", BACKUP.read_text(), re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)$", section, re.MULTILINE)
    return [each for each in commands if not re.match(r"printf|broker serve|curl|kill", each)]


def carry_out(commands: Sequence[str], directory: Path) -> None:
    """Runs them in a shell, where `python3` and `broker` are ours."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "broker").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{PROGRAM[-1]}" "$@"\n')
    (programs / "broker").chmod(0o755)
    (programs / "python3").unlink(missing_ok=True)
    (programs / "python3").symlink_to(sys.executable)
    done = subprocess.run(
        ["/bin/bash", "-euc", "\n".join(commands)],
        cwd=directory,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done


async def test_store_brought_back_from_a_copy_is_put_right(
    quiet: BrokerProcess, postgresql: PostgresServer, login: dict[str, str]
) -> None:
    """Copied and brought back as the page says. A dry run tells users made, ended and handed out since; told to, each is put right."""
    database = Database(postgresql)
    await prepare(quiet, postgresql, login, app=0, pooled=2)

    async def pool_is_full() -> bool:
        return list((await users_of(quiet, database)).values()).count(False) == 2

    kept, ended = await issue(quiet), await issue(quiet)
    await until(pool_is_full)
    carry_out(documented("Take one"), quiet.directory)
    new, handed_out = await issue(quiet), await issue(quiet, "pooled")
    assert (await revoke(quiet, ended["lease_id"])).status == 204
    await until(pool_is_full)
    token = quiet.root_token
    quiet.stop()
    carry_out(documented("Bring it back"), quiet.directory)
    # Whoever brings a store back has its token from elsewhere; the helpers look for it here.
    (quiet.state / "root-token").write_text(token.reveal())
    quiet.start()
    before = await users_of(quiet, database)
    differ = {"login_on": 1, "missing_user": 1, "unknown_user": 2}
    status, report = found(quiet)
    assert (status, report["found"], report["amended"]) == (DIFFER, differ, {})
    named = {each["username"]: (each["kind"], each["lease_id"] != "") for each in report["differences"]}
    assert named[new["data"]["username"]] == ("unknown_user", False)
    assert named[ended["data"]["username"]] == ("missing_user", True)
    assert named[handed_out["data"]["username"]] == ("login_on", True)
    assert await users_of(quiet, database) == before

    status, report = found(quiet, "pg", "--apply")
    assert (status, report["found"]) == (DIFFER, differ)
    assert report["amended"] == {"login_on": 1, "missing_user": 1}

    async def is_gone(lease: Any) -> bool:
        return not await database.has(lease["data"]["username"])

    await until(lambda: is_gone(handed_out))
    assert await database.lets_in(new["data"])
    status, report = found(quiet, "--apply", "--drop-unknown")
    assert (status, report["found"], report["amended"]) == (AGREE, {"unknown_user": 2}, {"unknown_user": 2})
    await until(lambda: is_gone(new))

    async def agrees() -> bool:
        return "database and store agree" in (await asyncio.to_thread(run, quiet)).stdout

    await until(agrees)
    assert await database.lets_in(kept["data"])
    state = await look_up(quiet, kept["lease_id"])
    assert state.data["state"] == "active"
    assert (await look_up(quiet, ended["lease_id"])).status == 400


async def test_session_that_outlived_its_role_is_ended(
    quiet: BrokerProcess, postgresql: PostgresServer, login: dict[str, str]
) -> None:
    """A dry run counts it and leaves it; one that may change something ends it, or says what to grant, and its status that this is left."""
    database, stray = Database(postgresql), "stray"
    await prepare(quiet, postgresql, login)

    async def was_swept() -> bool:
        counted = await quiet.request("GET", "sys/metrics?format=prometheus")
        return re.search(rb'call_seconds_count\{[^}]*verb="sweep"[^}]*\} [1-9]', counted.raw) is not None

    await until(was_swept)
    await database.run(f"CREATE ROLE {stray} LOGIN PASSWORD '{stray}'")
    session: Any = await database.log_in({"username": stray, "password": stray})
    await database.run(f"DROP ROLE {stray}")
    try:
        status, report = found(quiet)
        assert (status, report["sessions_left"], report["sessions_ended"], report["found"]) == (DIFFER, 1, 0, {})
        assert await session.fetchval("SELECT 1") == 1
        if login:
            done = run(quiet, "--apply")
            assert done.returncode == DIFFER
            assert f'GRANT pg_signal_backend TO "{login["username"]}"' in done.stdout
            await database.run(f"GRANT pg_signal_backend TO {login['username']}")
            assert (await quiet.request("POST", "database/reset/pg")).status == 204
        done = run(quiet, "--apply")
        assert "pg: sessions of users that no longer exist, ended: 1\n" in done.stdout, done
        assert done.returncode == AGREE
        with pytest.raises(ENDED):
            await session.fetchval("SELECT 1")
    finally:
        session.terminate()
        if login:
            await database.run(f"REVOKE pg_signal_backend FROM {login['username']}")


async def test_command_tells_what_differs_before_it_changes_anything(
    quiet: BrokerProcess, postgresql_18: PostgresServer
) -> None:
    """A dry run names each user, its lease and what to do; with --apply it is done, and the same command agrees afterwards."""
    database = Database(postgresql_18)
    await prepare(quiet, postgresql_18, {}, app=0)
    off, kept = await issue(quiet), await issue(quiet)
    await database.run(f'ALTER ROLE "{off["data"]["username"]}" NOLOGIN')
    dry = run(quiet)
    assert (dry.returncode, dry.stderr) == (DIFFER, "")
    figures = next(line for line in dry.stdout.splitlines() if line.startswith("pg ")).split()
    assert figures == ["pg", "2", "2", "1", "0"]
    assert "pg: 1 login_off: the lease is active; --apply lets its user log in again\n" in dry.stdout
    assert f"  login_off  {off['data']['username']}  {off['lease_id']}\n" in dry.stdout
    assert not await database.lets_in(off["data"])
    applied = run(quiet, "pg", "--apply")
    assert (applied.returncode, applied.stderr) == (AGREE, "")
    assert await database.lets_in(off["data"])
    assert await database.lets_in(kept["data"])
    assert "database and store agree" in run(quiet).stdout


async def test_progress_is_for_terminals(quiet: BrokerProcess, postgresql_18: PostgresServer) -> None:
    """A bar where standard error is a terminal; in pipes nothing but what was found, as JSON where that was asked for."""
    await prepare(quiet, postgresql_18, {})
    piped = run(quiet, "--json")
    assert (piped.returncode, piped.stderr) == (AGREE, "")
    assert json.loads(piped.stdout)["state"] == "done"
    ours, theirs = pty.openpty()
    try:
        shown = run(quiet, "--json", stderr=theirs)
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 4096):
                seen += part
        except OSError:
            """The other end is closed: that was all."""
    finally:
        os.close(ours)
    assert b"comparing" in seen
    assert json.loads(shown.stdout)["state"] == "done"


async def test_status_tells_failures_from_differences(quiet: BrokerProcess, postgresql_18: PostgresServer) -> None:
    """1 is a difference and nothing else: who may not ask, asks for what is not there, or for nothing sensible, hears another."""
    await prepare(quiet, postgresql_18, {})
    wrong = run(quiet, "nowhere")
    assert (wrong.returncode, wrong.stdout) == (INCOMPLETE, "")
    assert 'connection with name: "nowhere"' in wrong.stderr
    made = await quiet.request("POST", "auth/token/create", {"policies": ["default"]})
    refused = run(quiet, token=made.body["auth"]["client_token"])
    assert (refused.returncode, refused.stdout) == (INCOMPLETE, "")
    assert "permission denied" in refused.stderr
    assert (await quiet.request("GET", "sys/reconcile")).data["state"] == "idle"
    alone = run(quiet, "--drop-unknown")
    assert alone.returncode == INCOMPLETE
    assert "--apply" in alone.stderr
    quiet.stop()
    away = run(quiet)
    assert (away.returncode, away.stdout) == (UNAVAILABLE, "")
    assert "does not answer" in away.stderr


async def test_database_that_does_not_answer_delays_no_other(tmp_path: Path, postgresql_18: PostgresServer) -> None:
    """It takes the connection and says nothing. The others are compared and put right long before its time limit is over."""
    content = f"[engines]\nconnect_timeout_s = {2 * LIMIT_S}\n{QUIET}"
    with socket.create_server(("127.0.0.1", 0)) as silent, BrokerProcess(tmp_path, content) as broker:
        port = silent.getsockname()[1]
        url = f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/app?connect_timeout={2 * LIMIT_S}"
        body = {**connection_to(postgresql_18, connection_url=url), "verify_connection": False}
        assert (await broker.request("PUT", "database/config/a-silent-one", body)).status in {200, 204}
        await prepare(broker, postgresql_18, {}, app=0)
        gone = await issue(broker)
        await Database(postgresql_18).run(f'DROP ROLE "{gone["data"]["username"]}"')
        assert (await broker.request("POST", "sys/reconcile", {"dry_run": False})).status == 202

        async def put_right() -> bool:
            reports = (await broker.request("GET", "sys/reconcile")).data["connections"]
            return [report["amended"] for report in reports if report["connection"] == "pg"] == [{"missing_user": 1}]

        await until(put_right, limit_s=LIMIT_S)
        shown = (await broker.request("GET", "sys/reconcile")).data
        assert shown["state"] == "running"
        assert [report["connection"] for report in shown["connections"]] == ["a-silent-one", "pg"]


async def test_database_that_is_away_is_told_beside_the_others(quiet: BrokerProcess, postgresql_18: PostgresServer) -> None:
    """It was not compared: the status says so, whatever was found on the others."""
    await prepare(quiet, postgresql_18, {}, app=0)
    nobody = connection_to(postgresql_18, connection_url="postgresql://{{username}}:{{password}}@127.0.0.1:1/app")
    written = await quiet.request("PUT", "database/config/away", {**nobody, "verify_connection": False})
    assert written.status in {200, 204}, written
    gone = await issue(quiet)
    await Database(postgresql_18).run(f'DROP ROLE "{gone["data"]["username"]}"')
    done = run(quiet)
    assert done.returncode == INCOMPLETE
    assert re.search(r"^away: not compared to the end: .+", done.stdout, re.MULTILINE)
    assert f"  missing_user  {gone['data']['username']}  {gone['lease_id']}\n" in done.stdout
    assert "agree" not in done.stdout
