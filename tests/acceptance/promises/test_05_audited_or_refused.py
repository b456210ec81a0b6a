"""Both entries are on disc before the answer; taking access away waits for no log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker import daemon
from broker.clock import SystemClock
from broker.model import LeaseNumber, LeaseState
from broker.seal.providers import MemoryKey
from broker.testing.broker import CREATE_USER, Broker, until
from broker.testing.database import Database
from broker.testing.device import FOR_EVER, BreakableDevice
from broker.testing.leasing import issue, prepare, revoke, users_of


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
        await prepare(broker, database.server, prepared_users=pooled)
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
        device[0].flushes_left = FOR_EVER
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
        await prepare(broker, database.server, prepared_users=pooled)

        async def filled() -> bool:
            return await broker.daemon.store.pool_size("database/creds/app") == pooled

        await until(filled)
        device[0].flushes_left = 1
        answer = await broker.request("GET", "database/creds/app")
        assert answer.status == 503, answer
        assert b"password" not in answer.raw.replace(b"password_", b"")
        device[0].flushes_left = FOR_EVER

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
        await prepare(broker, database.server, default_ttl="10m")
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
        device[0].flushes_left = FOR_EVER
        # The claim of the attempt that failed has to run out before the next; asking makes it due at once.
        assert (await revoke(broker, lease["lease_id"])).status == 204
        assert not await database.has(lease["data"]["username"])
    assert lease["data"]["username"] in (broker.config.store.directory / "audit.log").read_text()
