"""A full disc under the store and the audit log, and a store file that somebody damaged or exchanged, at the real daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.testing.broker import CREATE_USER, BrokerFailed, BrokerProcess, connection_to, until
from broker.testing.database import ENDED, Database
from broker.testing.postgresql import PostgresServer

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
_PAGE = 4_096
EX_DATAERR, EX_NOPERM = 65, 77


class SmallDisc:
    """A tmpfs of its own, which a file of ballast fills up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    def fill(self) -> None:
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(descriptor, bytes(_PAGE))
        except OSError:
            os.close(descriptor)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disc(tmp_path: Path) -> Iterator[SmallDisc]:
    """A disc of 2 MB. Only root may mount one: elsewhere the tests are left out and named."""
    directory = tmp_path / "disc"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", directory], check=True)
    yield SmallDisc(directory)
    subprocess.run(["umount", directory], check=True)


async def set_up(broker: BrokerProcess, server: PostgresServer) -> None:
    for path, body in (
        ("database/config/pg", connection_to(server)),
        ("database/roles/app", {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False}),
        ("database/roles/brief", {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "default_ttl": "3s"}),
    ):
        assert (await broker.request("PUT", path, body)).status == 204


@pytest.mark.parametrize("what", ["store", "audit", "both"])
async def test_full_disc_refuses_and_recovers(
    small_disc: SmallDisc, tmp_path: Path, postgresql_18: PostgresServer, cli: Cli, what: str
) -> None:
    """While the disc is full, leases are refused with 503 and sessions end in time; with space all goes on, the audit log whole."""
    (tmp_path / "large").mkdir(mode=0o700)
    state = {True: small_disc.directory, False: tmp_path / "large"}
    content = (
        f'[store]\ndirectory = "{state[what != "audit"] / "state"}"\n'
        f'[audit]\npath = "{state[what != "store"] / "audit.log"}"\n[log]\nlevel = "info"\n'
    )
    database = Database(postgresql_18)
    with BrokerProcess(tmp_path, content) as broker:
        broker.state = state[what != "audit"] / "state"
        await set_up(broker, postgresql_18)
        broker_id = (await broker.request("GET", "sys/health")).body["cluster_id"]
        before = (await broker.request("GET", "database/creds/app")).body
        expiring = (await broker.request("GET", "database/creds/brief")).body
        session = await database.log_in(expiring["data"])
        small_disc.fill()
        answers = []

        async def refused() -> bool:
            # What is allocated already takes a few more.
            answers.append(await broker.request("GET", "database/creds/app"))
            return answers[-1].status != 200

        await until(refused)
        answers += [await broker.request("GET", "database/creds/app") for _ in range(5)]
        last = answers[-1]
        assert last.status == 503, last
        assert int(last.headers["Retry-After"]) >= 1
        assert "store" in last.errors[0] or "audit" in last.errors[0]
        assert (await broker.request("GET", "sys/health")).status == 200
        answered = {answer.data["username"] for answer in answers if answer.status == 200}

        async def login_ended() -> bool:
            return not await database.lets_in(expiring["data"])

        async def session_ended() -> bool:
            try:
                return not await session.fetchval("SELECT true")
            except ENDED:
                return True

        await until(login_ended)
        await until(session_ended)
        small_disc.free()

        async def goes_on() -> bool:
            return (await broker.request("GET", "database/creds/app")).status == 200

        await until(goes_on)
        assert await database.lets_in(before["data"])
        assert (await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")).status == 204

        async def clean() -> bool:
            return not await database.users(broker_id)

        await until(clean)
        assert "Traceback" not in broker.log()
        verified = await asyncio.to_thread(cli, "audit", "verify", "--config", broker.config)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert broker.stop() == 0
    log = (state[what != "store"] / "audit.log").read_text()
    assert all(log.count(username) >= 2 for username in answered)


# a store that is not what it was --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, postgresql_18: PostgresServer) -> Path:
    """The directory of a broker that was stopped with a few leases in its store."""
    directory = tmp_path_factory.mktemp("whole")

    async def fill(broker: BrokerProcess) -> None:
        await set_up(broker, postgresql_18)
        for _ in range(5):
            assert (await broker.request("GET", "database/creds/app")).status == 200

    with BrokerProcess(directory) as broker:
        asyncio.run(fill(broker))
        assert broker.stop() == 0
    return directory


def cut(state: Path) -> None:
    store = state / "store.db"
    os.truncate(store, store.stat().st_size // 2)


def emptied(state: Path) -> None:
    os.truncate(state / "store.db", 0)


def overwritten(state: Path) -> None:
    (state / "store.db").write_bytes(b"not a database at all\n" * 1_000)


def zeroed_page(state: Path) -> None:
    content = bytearray((state / "store.db").read_bytes())
    content[_PAGE : 2 * _PAGE] = bytes(_PAGE)
    (state / "store.db").write_bytes(content)


def sealed_bit(state: Path) -> None:
    """Flips one bit within the sealed keyring."""
    with sqlite3.connect(state / "store.db") as db:
        [(name, sealed)] = db.execute("SELECT name, sealed FROM vital ORDER BY name LIMIT 1").fetchall()
        changed = bytes([*sealed[:-1], sealed[-1] ^ 1])
        db.execute("UPDATE vital SET sealed = ? WHERE name = ?", (changed, name))
    db.close()


def another_key(state: Path) -> None:
    key = state / "master.key"
    text = key.read_text()
    key.write_text(text[::-1] if not text.endswith("\n") else text[-2::-1] + "\n")


DAMAGES: dict[str, tuple[Callable[[Path], None], set[int]]] = {
    "cut": (cut, {EX_DATAERR}),
    "emptied": (emptied, {EX_DATAERR}),
    "overwritten": (overwritten, {EX_DATAERR}),
    "a page of zeros": (zeroed_page, {EX_DATAERR}),
    "a bit of a sealed value": (sealed_bit, {EX_DATAERR}),
    "another key": (another_key, {EX_DATAERR, EX_NOPERM}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_store_is_refused_and_left_alone(whole: Path, tmp_path: Path, damage: str) -> None:
    """The start fails with one clear line and its exit status, and changes nothing in the store that a rescuer would need."""
    harm, statuses = DAMAGES[damage]
    state = tmp_path / "state"
    shutil.copytree(whole / "state", state)
    harm(state)
    kept = (state / "store.db").read_bytes()
    broker = BrokerProcess(tmp_path)
    with pytest.raises(BrokerFailed):
        broker.start()
    assert broker.wait() in statuses, broker.log()
    lines = [line for line in broker.log().splitlines() if line.startswith("broker: ")]
    assert len(lines) == 1, broker.log()
    assert "Traceback" not in broker.log()
    assert (state / "store.db").read_bytes() == kept
    assert not [
        path
        for path in state.iterdir()
        if path.name == "root-token" and path.read_bytes() != (whole / "state" / "root-token").read_bytes()
    ]
