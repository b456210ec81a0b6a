"""The promises of the design, one after the other, kept by the real daemon before a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg
import pytest
from prometheus_client import generate_latest

from broker import daemon
from broker.clock import SystemClock
from broker.errors import BrokerError, KeyUnusable, SealBroken, StoreDamaged
from broker.model import Lease, LeaseNumber, LeaseState
from broker.seal.providers import FileKey, MemoryKey
from broker.store.sqlite.store import SqliteStore
from broker.testing.broker import CREATE_USER, Broker, BrokerProcess, connection_to, until
from broker.testing.clock import ManualClock
from broker.testing.database import Database
from broker.testing.proxy import Proxy

SLACK_S = 5.0
"""How long past its lease a login may work where nobody revokes it (Vault's margin for `{{expiration}}`)."""
BRIEF_S = 8
"""How long a lease lives that runs out while a test looks on; its user logs in before that on a busy machine, too."""
ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


async def prepare(broker: Broker | BrokerProcess, database: Database, **role: Any) -> None:
    """The connection `pg` and the role `app`."""
    fields = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "default_ttl": "1h", **role}
    url = role.pop("connection_url", database.server.url_template())
    fields.pop("connection_url", None)
    # A user that is tried, or rehearsed, would be a life of its own before the one that is looked at.
    connection = connection_to(database.server, connection_url=url, verify_connection=False)
    written = await broker.request("PUT", "database/config/pg", connection)
    assert written.status == 204, written
    written = await broker.request("PUT", "database/roles/app", {"rehearse": False, **fields})
    assert written.status in (200, 204), written


async def issue(broker: Broker | BrokerProcess, role: str = "app", **options: Any) -> Any:
    """A lease, as it was answered."""
    answer = await broker.request("GET", f"database/creds/{role}", **options)
    assert answer.status == 200, answer
    return answer.body


async def revoke(broker: Broker | BrokerProcess, lease_id: str) -> Any:
    return await broker.request("PUT", "sys/leases/revoke", {"lease_id": lease_id})


async def stored_leases(state: Path) -> list[Lease]:
    """Every lease in the store of a broker that does not run, gone ones too."""
    store = await SqliteStore.open(state, FileKey(state / "master.key").master_key(), SystemClock())
    try:
        return list(await store.leases_in(list(LeaseState), after=LeaseNumber(0), limit=1_000))
    finally:
        await store.close()


async def users_of(broker: Broker | BrokerProcess, database: Database) -> dict[str, bool]:
    """The users that this broker has in the database, and whether each has a login."""
    return await database.users((await broker.request("GET", "sys/health")).body["cluster_id"])


async def pass_time(state: Path, by_ms: int) -> None:
    """Lets time pass for a broker that does not run: its store then knows of a later moment, and time never goes back."""
    key = FileKey(state / "master.key").master_key()
    store = await SqliteStore.open(state, key, SystemClock())
    now_ms = store.now_ms()
    await store.close()
    store = await SqliteStore.open(state, key, ManualClock(now_ms + by_ms))
    await store.close()


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# 1 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["store.reserve.after", "engine.create.before", "engine.create.after", "store.move.before"])
async def test_promise_1_written_before_done(tmp_path: Path, database: Database, victim: Sequence[str], step: str) -> None:
    """Killed on its way through an issue, the broker has written down every user that the database has; the next start removes it."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start()
    await prepare(broker, database)
    broker_id = (await broker.request("GET", "sys/health")).body["cluster_id"]
    broker.kill()
    broker.start(step, "1")
    with pytest.raises(OSError):  # noqa: PT011 - however the connection breaks
        await broker.request("GET", "database/creds/app")
    broker.wait()
    made = set(await database.users(broker_id))
    leases = await stored_leases(broker.state)
    assert [lease.state for lease in leases] == [LeaseState.RESERVED]
    assert made <= {str(lease.facts.username) for lease in leases}
    assert bool(made) is (step in ("engine.create.after", "store.move.before"))
    broker.start()

    async def clean() -> bool:
        return not await database.users(broker_id)

    async def told() -> bool:
        return '"operation":"recover"' in broker.audit_file.read_text()

    try:
        await until(clean)
        await until(told)
    finally:
        broker.kill()


# 2 --------------------------------------------------------------------------------------------------------------------


async def test_promise_2_removed_twice(tmp_path: Path, database: Database) -> None:
    """With the broker dead the login stops by itself; with the broker back the user goes."""
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, database, default_ttl=f"{BRIEF_S}s")
        login = (await issue(broker))["data"]
        broker.kill()
        assert await database.lets_in(login)
        [row] = await database.ask(
            "SELECT rolvaliduntil - clock_timestamp() <= make_interval(secs => $2) FROM pg_roles WHERE rolname = $1",
            login["username"],
            BRIEF_S + SLACK_S,
        )
        assert row[0]

        async def refused() -> bool:
            return not await database.lets_in(login)

        await until(refused)
        assert await database.has(login["username"])
        broker.start()

        async def gone() -> bool:
            return not await database.has(login["username"])

        await until(gone)


# 3 --------------------------------------------------------------------------------------------------------------------


async def test_promise_3_ended_means_ended(shared: BrokerProcess, database: Database) -> None:
    """Revoking ends the user's open sessions, removes the user, and only then answers."""
    lease = await issue(shared)
    session = await database.log_in(lease["data"])
    assert (await revoke(shared, lease["lease_id"])).status == 204
    with pytest.raises(ENDED):
        await session.execute("SELECT 1")
    session.terminate()
    assert not await database.has(lease["data"]["username"])
    assert (await revoke(shared, lease["lease_id"])).status == 204


async def test_promise_3_expiry_ends_sessions_too(shared: BrokerProcess, database: Database) -> None:
    """A session that outlives its lease is ended without anybody asking."""
    await shared.request(
        "PUT",
        "database/roles/brief",
        {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "default_ttl": f"{BRIEF_S}s"},
    )
    lease = await issue(shared, "brief")
    session = await database.log_in(lease["data"])

    async def ended() -> bool:
        try:
            await session.execute("SELECT 1")
        except ENDED:
            return True
        return False

    await until(ended)
    session.terminate()

    async def gone() -> bool:
        return (await shared.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).status == 400

    await until(gone)
    assert not await database.has(lease["data"]["username"])


async def make_owner(database: Database, login: dict[str, str], table: str) -> asyncpg.Connection[asyncpg.Record]:
    """A session of the user, which owns a table with a row."""
    await database.run(f'GRANT CREATE ON SCHEMA public TO "{login["username"]}"')
    session = await database.log_in(login)
    await session.execute(f"CREATE TABLE {table} (n int); INSERT INTO {table} VALUES (7)")
    return session


async def test_promise_3_owned_objects_are_contained(shared: BrokerProcess, database: Database) -> None:
    """By default nothing owned is destroyed: the user is contained, lookup shows the remedy, and after it the rest happens by itself."""
    lease = await issue(shared)
    username = lease["data"]["username"]
    session = await make_owner(database, lease["data"], "owned_by_default")
    refused = await revoke(shared, lease["lease_id"])
    assert refused.status == 400
    assert "failed to revoke entry" in refused.errors[0]
    with pytest.raises(ENDED):
        await session.execute("SELECT 1")
    session.terminate()
    assert not await database.lets_in(lease["data"])
    assert await database.has(username)
    shown = (await shared.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).data
    assert shown["state"] in ("revoking", "stuck")
    assert shown["revoke_error"]
    assert any(username in statement for statement in shown["remedy"]), shown
    # What an operator decides: the table gets another owner. The grant of this test goes with the user's other traces.
    await database.run(f"ALTER TABLE owned_by_default OWNER TO {database.server.superuser}")

    async def gone() -> bool:
        return not await database.has(username)

    await until(gone)
    [row] = await database.ask("SELECT n FROM owned_by_default")
    assert row["n"] == 7
    await database.run("DROP TABLE owned_by_default")


async def test_promise_3_remedy_as_shown_lets_it_finish(shared: BrokerProcess, database: Database) -> None:
    """The statements that lookup shows can be run as they are, and the revocation then finishes."""
    lease = await issue(shared)
    session = await make_owner(database, lease["data"], "owned_for_remedy")
    await revoke(shared, lease["lease_id"])
    session.terminate()
    shown = (await shared.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).data
    for statement in shown["remedy"]:
        await database.run(statement.replace("<new owner>", database.server.superuser))
    assert (await revoke(shared, lease["lease_id"])).status == 204, shown
    assert not await database.has(lease["data"]["username"])
    await database.run("DROP TABLE IF EXISTS owned_for_remedy")


async def test_promise_3_owned_objects_are_dropped_on_demand(shared: BrokerProcess, database: Database) -> None:
    """Where the role says so, what the user owns goes with it."""
    role = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "owned_objects": "drop"}
    warned = await shared.request("PUT", "database/roles/owning", role)
    assert "destroyed" in warned.body["warnings"][0]
    lease = await issue(shared, "owning")
    session = await make_owner(database, lease["data"], "owned_to_drop")
    assert (await revoke(shared, lease["lease_id"])).status == 204
    session.terminate()
    assert not await database.has(lease["data"]["username"])
    assert not await database.ask("SELECT 1 FROM pg_class WHERE relname = 'owned_to_drop'")


# 4 --------------------------------------------------------------------------------------------------------------------


async def test_promise_4_shown_once(tmp_path: Path, database: Database) -> None:
    """A password is in one response and in no file, no log, no audit line, and no later answer."""
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, database, prepared_users=2)
        leases = [await issue(broker) for _ in range(4)]
        later = [
            await broker.request("PUT", "sys/leases/lookup", {"lease_id": leases[0]["lease_id"]}),
            await broker.request("PUT", "sys/leases/renew", {"lease_id": leases[0]["lease_id"]}),
            await broker.request("LIST", "sys/leases/lookup/database/creds/app"),
            await broker.request("GET", "database/roles/app"),
            await broker.request("GET", "database/config/pg"),
            await revoke(broker, leases[0]["lease_id"]),
        ]
        passwords = [lease["data"]["password"].encode() for lease in leases]
        assert len(set(passwords)) == 4
        kept = files_of(tmp_path)
        broker.stop()
        kept |= {f"stopped {path}": content for path, content in files_of(tmp_path).items()}
        where = [path for path, content in kept.items() if any(password in content for password in passwords)]
        assert where == []
        assert not [answer for answer in later if any(password in answer.raw for password in passwords)]
        leases_kept = [lease for lease in await stored_leases(broker.state) if lease.state is LeaseState.ACTIVE]
        assert len(leases_kept) == 3
        assert [lease.facts.password for lease in leases_kept] == [None] * 3


async def test_promise_4_asked_again_with_the_same_key(tmp_path: Path, database: Database) -> None:
    """An Idempotency-Key gives the same answer to the same token alone, also after a crash; the sealed copy ends with the lease."""
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, database)
        key = {"Idempotency-Key": "job-17"}
        first = await issue(broker, headers=key)
        broker.kill()
        broker.start()
        again = await issue(broker, headers=key)
        assert (again["lease_id"], again["data"]) == (first["lease_id"], first["data"])
        assert await database.lets_in(first["data"])
        other = (await broker.request("POST", "auth/token/create", {"ttl": "1h"})).body["auth"]["client_token"]
        assert (await issue(broker, headers=key, token=other))["lease_id"] != first["lease_id"]
        assert (await revoke(broker, first["lease_id"])).status == 204
        broker.stop()
        kept = {lease.facts.username: lease for lease in await stored_leases(broker.state)}
        ended = kept[first["data"]["username"]]
        assert ended.state is LeaseState.GONE
        assert ended.facts.password is None


# 5 --------------------------------------------------------------------------------------------------------------------


class BreakableDevice:
    """An audit device whose disc a test takes away: at once, or after `flushes_left` more flushes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.flushes_left = 1 << 60

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def reader(self) -> BinaryIO:
        found: BinaryIO = self._inner.reader()
        return found

    def write(self, data: bytes) -> None:
        if self.flushes_left <= 0:
            raise OSError(5, "Input/output error")
        self._inner.write(data)

    def flush(self) -> None:
        self._inner.flush()
        self.flushes_left -= 1


@pytest.fixture
def device() -> list[BreakableDevice]:
    """The device of the test's broker, once that runs."""
    return []


@pytest.fixture
def clock() -> SystemClock:
    """The clock of the test's broker; `raise_to` lets time pass at once."""
    return SystemClock()


@pytest.fixture
def breakable(tmp_path: Path, device: list[BreakableDevice], clock: SystemClock) -> Broker:
    """A broker whose audit device breaks when told."""

    def planted(inner: Any) -> Any:
        device.append(BreakableDevice(inner))
        return device[0]

    return Broker(tmp_path / "state", seams=daemon.Seams(key=MemoryKey(), device=planted, clock=lambda: clock))


@pytest.mark.parametrize("pooled", [0, 3])
async def test_promise_5_audited_or_refused(
    breakable: Broker, device: list[BreakableDevice], database: Database, pooled: int
) -> None:
    """Without its audit log nothing is done: every request is refused with 503, and no user is left, of an issue least of all."""
    async with breakable as broker:
        await prepare(broker, database, prepared_users=pooled)
        device[0].flushes_left = 0
        answers = [
            await broker.request("GET", "database/creds/app"),
            await broker.request("GET", "auth/token/lookup-self"),
            await broker.request(
                "PUT", "database/roles/new", {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False}
            ),
            await broker.request("GET", "auth/token/lookup-self", token="hvs.unknown"),
        ]
        assert [answer.status for answer in answers] == [503] * 4, answers
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
        assert (await broker.request("GET", "sys/health")).status == 200
        device[0].flushes_left = 1 << 60
        assert (await broker.request("GET", "database/roles/new")).status == 404

        async def nobody() -> bool:
            return not any((await users_of(broker, database)).values())

        await until(nobody)


@pytest.mark.parametrize("pooled", [0, 3])
async def test_promise_5_lease_whose_answer_is_not_on_record_is_revoked(
    breakable: Broker, device: list[BreakableDevice], database: Database, pooled: int
) -> None:
    """When the response entry can't be written, the caller gets 503 and no password, and the user that was made goes."""
    async with breakable as broker:
        await prepare(broker, database, prepared_users=pooled)

        async def filled() -> bool:
            return await broker.daemon.store.pool_size("database/creds/app") == pooled

        await until(filled)
        device[0].flushes_left = 1
        answer = await broker.request("GET", "database/creds/app")
        assert answer.status == 503, answer
        assert b"password" not in answer.raw.replace(b"password_", b"")
        device[0].flushes_left = 1 << 60

        async def nobody() -> bool:
            return not any((await users_of(broker, database)).values())

        async def no_lease() -> bool:
            return (await broker.request("LIST", "sys/leases/lookup/database/creds/app")).status == 404

        await until(nobody)
        await until(no_lease)


async def test_promise_5_taking_access_away_waits_for_no_audit_log(
    breakable: Broker, device: list[BreakableDevice], database: Database, clock: SystemClock
) -> None:
    """While the audit log is away an expired lease loses its login and its sessions; only `gone` waits until the log is back."""
    async with breakable as broker:
        await prepare(broker, database, default_ttl="10m")
        lease = await issue(broker)
        session = await database.log_in(lease["data"])
        device[0].flushes_left = 0
        clock.raise_to(clock.now_ms() + 600_000)

        async def contained() -> bool:
            able = await database.ask("SELECT 1 FROM pg_roles WHERE rolname = $1 AND rolcanlogin", lease["data"]["username"])
            return not able and session.is_closed()

        await until(contained)
        session.terminate()
        [kept] = await broker.daemon.store.leases_in(list(LeaseState), after=LeaseNumber(0), limit=10)
        assert kept.state is LeaseState.REVOKING
        device[0].flushes_left = 1 << 60
        # The claim of the attempt that failed has to run out before the next; asking makes it due at once.
        assert (await revoke(broker, lease["lease_id"])).status == 204
        assert not await database.has(lease["data"]["username"])
    assert lease["data"]["username"] in (broker.config.store.directory / "audit.log").read_text()


# 6 --------------------------------------------------------------------------------------------------------------------

PLANTED = {
    "connection password": "planted-connection-password-1",
    "password in a URL": "planted-url-password-2",
    "private key": "planted-private-key-3",
    "body that is no JSON": "planted-body-4",
    "unknown token": "hvs.planted-token-5",
    "field of the wrong type": "planted-type-6",
    "idempotency key": "planted-idempotency-7",
}


async def provoke(broker: Broker | BrokerProcess, database: Database) -> list[bytes]:
    """Makes every kind of error around the planted secrets; answers the bodies."""
    url = database.server.url_template()
    connection = {"plugin_name": "postgresql-database-plugin", "connection_url": url, "username": "postgres"}
    role = {"db_name": "pg", "creation_statements": f"{CREATE_USER}; SELECT '{{{{password}}}}'::int"}
    secret = PLANTED
    answers = [
        await broker.request("PUT", "database/config/bad", {**connection, "password": secret["connection password"]}),
        await broker.request(
            "PUT",
            "database/config/bad",
            {**connection, "connection_url": f"postgresql://u:{secret['password in a URL']}@127.0.0.1:1/d"},
        ),
        await broker.request(
            "PUT", "database/config/bad", {**connection, "tls_certificate": "x", "private_key": secret["private key"]}
        ),
        await broker.request("PUT", "database/config/bad", f'{{"password": "{secret["body that is no JSON"]}'.encode()),
        await broker.request("PUT", "database/config/bad", {**connection, "password": [secret["field of the wrong type"]]}),
        await broker.request("PUT", "database/config/bad", {**connection, "port": 1, "password": {"a": secret["private key"]}}),
        await broker.request("GET", "auth/token/lookup-self", token=secret["unknown token"]),
        await broker.request("POST", "auth/token/lookup", {"token": secret["unknown token"]}),
        await broker.request("PUT", "database/roles/leaky", role),
        await broker.request("GET", "database/creds/leaky", headers={"Idempotency-Key": secret["idempotency key"]}),
        await broker.request(
            "PUT",
            "database/config/kept",
            {**connection, "password": secret["connection password"], "verify_connection": False, "allowed_roles": "*"},
        ),
        await broker.request("GET", "database/config/kept"),
        await broker.request("POST", "database/reset/kept"),
    ]
    assert max(answer.status for answer in answers) < 504
    assert 500 not in [answer.status for answer in answers], answers
    assert answers[9].status == 400, answers[9]
    return [answer.raw for answer in answers]


async def test_promise_6_nothing_leaks(tmp_path: Path, database: Database) -> None:
    """Planted secrets, the root token and passwords stand in no error body, log, audit line, file or process list."""
    with BrokerProcess(tmp_path, '[log]\nlevel = "debug"\n') as broker:
        await prepare(broker, database)
        bodies = await provoke(broker, database)
        lease = await issue(broker)
        command = Path(f"/proc/{broker.pid}/cmdline").read_bytes()
        root = broker.root_token.reveal()
        (broker.state / "root-token").unlink()
        secrets = [*PLANTED.values(), root, lease["data"]["password"], database.server.superuser_password.reveal()]
        places = {"bodies": b"\n".join(bodies), "process list": command, **files_of(tmp_path)}
        found = [(secret, place) for place, text in places.items() for secret in secrets if secret.encode() in text]
        assert found == []
        assert "Traceback" not in broker.log()


async def test_promise_6_nothing_leaks_into_metrics(tmp_path: Path, database: Database) -> None:
    """No metric shows a planted secret, a user name or a lease id, whatever paths were asked for."""
    async with Broker(tmp_path / "state") as broker:
        await prepare(broker, database)
        await provoke(broker, database)
        lease = await issue(broker)
        await broker.request("GET", f"sys/nowhere/{PLANTED['unknown token']}")
        await revoke(broker, lease["lease_id"])
        shown = generate_latest(broker.daemon.metrics.registry).decode()
        secrets = [*PLANTED.values(), lease["data"]["username"], lease["lease_id"], lease["data"]["password"]]
        assert [secret for secret in secrets if secret in shown] == []
        assert 'role="app"' in shown


# 7 --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def stopped(tmp_path: Path, database: Database) -> tuple[Path, MemoryKey, Any]:
    """The state directory of a stopped broker with a lease, its key, and what it answers about the lease."""
    key = MemoryKey()
    async with Broker(tmp_path / "state", seams=daemon.Seams(key=key)) as broker:
        await prepare(broker, database)
        lease = await issue(broker)
        answer = await look_around(broker, lease["lease_id"])
    return tmp_path / "state", key, (lease["lease_id"], answer)


async def look_around(broker: Broker, lease_id: str) -> list[Any]:
    """What the store says of connection, role, tokens and lease, as far as it does not change with time."""
    seen = [
        await broker.request("GET", "database/config/pg"),
        await broker.request("GET", "database/roles/app"),
        await broker.request("GET", "auth/token/lookup-self"),
        await broker.request("PUT", "sys/leases/lookup", {"lease_id": lease_id}),
    ]
    return [
        {key: value for key, value in answer.data.items() if key != "ttl"} if answer.status == 200 else answer.status
        for answer in seen
    ]


async def test_promise_7_sealed_at_rest(tmp_path: Path, stopped: tuple[Path, MemoryKey, Any]) -> None:
    """Any flipped bit is a clear refusal to start or to answer, or stands where nothing is read: never another answer."""
    state, key, (lease_id, before) = stopped
    content = (state / "store.db").read_bytes()
    dice = random.Random(7)
    refused = 0
    for attempt in range(40):
        place = dice.randrange(len(content) * 8)
        copy = Path(shutil.copytree(state, tmp_path / f"copy-{attempt}"))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        (copy / "store.db").write_bytes(flipped)
        try:
            async with Broker(copy, seams=daemon.Seams(key=key)) as broker:
                seen = await look_around(broker, lease_id)
        except (StoreDamaged, SealBroken, KeyUnusable):
            refused += 1
            continue
        for now, then in zip(seen, before, strict=True):
            assert now == then or now in (400, 403, 404, 503), (place, now, then)
    assert refused


async def test_promise_7_a_moved_value_does_not_open(stopped: tuple[Path, MemoryKey, Any]) -> None:
    """Sealed values that change places between two rows are refused, though each is whole."""
    state, key, _ = stopped
    with sqlite3.connect(state / "store.db") as db:
        (first, one), (second, other) = db.execute("SELECT number, body FROM document ORDER BY number LIMIT 2").fetchall()
        db.execute("UPDATE document SET body = ? WHERE number = ?", (other, first))
        db.execute("UPDATE document SET body = ? WHERE number = ?", (one, second))
    db.close()
    with pytest.raises(SealBroken):
        await Broker(state, seams=daemon.Seams(key=key)).__aenter__()


async def test_promise_7_another_key_opens_nothing(stopped: tuple[Path, MemoryKey, Any]) -> None:
    """With another master key the start is refused, and changes nothing: with the right one it works afterwards."""
    state, key, _ = stopped
    with pytest.raises(BrokerError) as refused:
        await Broker(state, seams=daemon.Seams(key=MemoryKey())).__aenter__()
    assert isinstance(refused.value, KeyUnusable | SealBroken)
    async with Broker(state, seams=daemon.Seams(key=key)) as broker:
        assert (await broker.request("GET", "database/roles/app")).status == 200


# 8 --------------------------------------------------------------------------------------------------------------------


async def test_promise_8_bounded(tmp_path: Path, database: Database) -> None:
    """Past a limit of leases, work or size the caller hears at once which it was (429 with Retry-After; 413), and all goes on."""
    content = {"leases": {"max_per_token": 3}, "server": {"max_body_bytes": 2_048}, "engines": {"max_in_flight": 2}}
    async with Proxy(database.server.host, database.server.port) as proxy, Broker(tmp_path / "state", content) as broker:
        url = database.server.url_template().replace(str(database.server.port), str(proxy.port))
        await prepare(broker, database, max_leases=2, connection_url=url)
        await broker.request(
            "PUT", "database/roles/second", {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False}
        )
        for role in ("app", "app"):
            await issue(broker, role)
        refused = [await broker.request("GET", "database/creds/app")]
        await issue(broker, "second")
        refused.append(await broker.request("GET", "database/creds/second"))
        assert (await broker.request("PUT", "database/roles/app", b"[" * 4_096)).status == 413
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")
        proxy.stall()
        asked = [asyncio.create_task(broker.request("GET", "database/creds/second")) for _ in range(3)]
        [over], waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused.append(over.result())
        proxy.resume()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert [answer.status for answer in refused] == [429] * 3
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        for answer, limit in zip(refused, ("max_leases", "max_per_token", "max_in_flight"), strict=True):
            assert limit in answer.errors[0]
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")


async def test_promise_8_overload(tmp_path: Path, database: Database) -> None:
    """More requests at once than the broker works on are answered 503 with Retry-After at once; health still answers."""
    async with (
        Proxy(database.server.host, database.server.port) as proxy,
        Broker(tmp_path / "state", {"server": {"max_in_flight": 4}}) as broker,
    ):
        url = database.server.url_template().replace(str(database.server.port), str(proxy.port))
        await prepare(broker, database, connection_url=url)
        proxy.stall()
        asked = {asyncio.create_task(broker.request("GET", "database/creds/app")) for _ in range(20)}
        refused = []
        while len(refused) < 16:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
        assert {answer.status for answer in refused} == {503}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert (await broker.request("GET", "sys/health")).status == 200
        proxy.resume()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")


# 9 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["engine.disable.after", "engine.end_sessions.after", "engine.drop.before", "engine.drop.after"]
)
async def test_promise_9_work_of_the_dead_is_finished(
    tmp_path: Path, database: Database, victim: Sequence[str], step: str
) -> None:
    """A broker that is killed in the middle of a revocation leaves it to the next one, which finishes it at once and once."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start(step, "1")
    await prepare(broker, database)
    lease = await issue(broker)
    with pytest.raises(OSError):  # noqa: PT011 - however the connection breaks
        await revoke(broker, lease["lease_id"])
    broker.wait()
    assert not await database.lets_in(lease["data"])
    broker.start()

    async def finished() -> bool:
        shown = await broker.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})
        return shown.status == 400

    try:
        await until(finished)
        assert not await database.has(lease["data"]["username"])
        broker.stop()
    finally:
        broker.kill()
    entries = [json.loads(line) for line in broker.audit_file.read_text().splitlines()]
    gone = [
        entry
        for entry in entries
        if entry["type"] == "response" and (entry.get("response", {}).get("data") or {}).get("time_to_dropped_ms") is not None
    ]
    assert len(gone) == 1, gone


async def test_promise_9_expiry_that_died_at_its_claim_goes_on(
    tmp_path: Path, database: Database, victim: Sequence[str]
) -> None:
    """A broker that dies right after it took an expired lease up has put it off by a minute, no longer."""
    broker = BrokerProcess(tmp_path, command=victim)
    broker.start("store.step.before", "1")
    await prepare(broker, database, default_ttl=f"{BRIEF_S}s")
    lease = await issue(broker)
    session = await database.log_in(lease["data"])
    await asyncio.to_thread(broker.wait)
    assert not session.is_closed()
    await pass_time(broker.state, 60_000)
    broker.start()

    async def gone() -> bool:
        return not await database.has(lease["data"]["username"])

    try:
        await until(gone)
    finally:
        broker.kill()
        session.terminate()


# 10 -------------------------------------------------------------------------------------------------------------------


class Wall:
    """The wall clock of a process, `shift` ahead of the true one; clocks that nobody can set stay as they are."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._file = directory / "faketime"
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(library.with_name("libfaketimeMT.so.1")),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, shift: str) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{shift}\n")
        draft.rename(self._file)


@pytest.fixture
def wall(libfaketime: Path, tmp_path: Path) -> Wall:
    """The wall clock of the test's broker."""
    return Wall(libfaketime, tmp_path)


async def test_promise_10_time_is_untrusted(tmp_path: Path, database: Database, wall: Wall) -> None:
    """Set an hour forward and an hour back, the wall clock ends no lease and brings none back; the jump is logged and audited."""
    with BrokerProcess(tmp_path, environment=wall.environment) as broker:
        await prepare(broker, database, default_ttl="30m")
        brief = {"db_name": "pg", "creation_statements": CREATE_USER, "rehearse": False, "default_ttl": f"{BRIEF_S}s"}
        await broker.request("PUT", "database/roles/brief", brief)
        lasting = await issue(broker)
        for shift in ("+1h", "-1h"):
            wall.set(shift)

            async def told(jumps: int = 1 if shift == "+1h" else 2) -> bool:
                logged = [line["event"] for line in broker.log_lines()]
                recorded = broker.audit_file.read_text().count("sys/clock")
                return min(logged.count("the wall clock was set; leases go by broker time"), recorded) >= jumps

            await until(told)
            passing = await issue(broker, "brief")
            [row] = await database.ask(
                "SELECT extract(epoch FROM rolvaliduntil - clock_timestamp())::float FROM pg_roles WHERE rolname = $1",
                passing["data"]["username"],
            )
            assert row[0] <= BRIEF_S + SLACK_S

            async def gone(lease_id: str = passing["lease_id"]) -> bool:
                return (await broker.request("PUT", "sys/leases/lookup", {"lease_id": lease_id})).status == 400

            await until(gone)
            assert not await database.has(passing["data"]["username"])
            shown = await broker.request("PUT", "sys/leases/lookup", {"lease_id": lasting["lease_id"]})
            assert shown.data["state"] == "active"
            assert 1_500 < shown.data["ttl"] <= 1_800
            assert await database.lets_in(lasting["data"])


async def test_promise_10_a_start_in_the_past_resurrects_nothing(tmp_path: Path, database: Database, wall: Wall) -> None:
    """After a restart with the clock an hour back, time goes on from where it was: the lease ends when it would have."""
    with BrokerProcess(tmp_path, environment=wall.environment) as broker:
        await prepare(broker, database, default_ttl="5s")
        lease = await issue(broker)
        broker.stop()
        wall.set("-1h")
        broker.start()

        async def gone() -> bool:
            return (await broker.request("PUT", "sys/leases/lookup", {"lease_id": lease["lease_id"]})).status == 400

        await until(gone)
        assert not await database.has(lease["data"]["username"])


async def test_promise_10_a_start_in_the_future_ends_nothing_silently(tmp_path: Path, database: Database, wall: Wall) -> None:
    """After a restart with the clock hours ahead, many leases fall due at once: the database's clock is asked, and expiry waits aloud."""
    with BrokerProcess(tmp_path, "[leases]\nmass_expiry = 3\n", environment=wall.environment) as broker:
        await prepare(broker, database, default_ttl="1h")
        leases = [await issue(broker) for _ in range(4)]
        broker.stop()
        wall.set("+3h")
        broker.start()

        async def told() -> bool:
            logged = "clocks disagree on connection pg: mass expiry waits" in broker.log()
            return logged and "mass expiry waits" in broker.audit_file.read_text()

        await until(told)
        assert [await database.lets_in(lease["data"]) for lease in leases] == [True] * 4
        await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")
