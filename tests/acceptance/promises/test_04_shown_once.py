"""A password leaves in one answer; a sealed copy exists only while somebody may ask for it again."""

from __future__ import annotations

from pathlib import Path

from broker.model import LeaseState
from broker.testing.broker import BrokerProcess
from broker.testing.database import Database
from broker.testing.leasing import issue, look_up, prepare, revoke
from broker.testing.stored import stored_leases


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_promise_4_shown_once(tmp_path: Path, database: Database) -> None:
    """A password is in one response and in no file, no log, no audit line, and no later answer."""
    with BrokerProcess(tmp_path) as broker:
        await prepare(broker, database.server, prepared_users=2)
        leases = [await issue(broker) for _ in range(4)]
        later = [
            await look_up(broker, leases[0]["lease_id"]),
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
        await prepare(broker, database.server)
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
