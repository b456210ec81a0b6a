"""Past its limits the door says so quickly, and stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker.audit.trail import Trail
from broker.errors import AuditUnavailable
from broker.leases.trial import Trials


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Small limits."""
    settings["server"] |= {"max_in_flight": 2, "max_connections": 8}
    return settings


@pytest.fixture
def brief_requests(settings: dict[str, Any]) -> None:
    """Requests are given up after three seconds, and what a database is asked for after two. Asked for before `broker`."""
    settings["server"] |= {"request_timeout_s": 3}
    settings["leases"] = {**settings.get("leases", {}), "issue_timeout_s": 3}
    settings["engines"] = {**settings.get("engines", {}), "issue_timeout_s": 2}


@pytest.fixture
def waiting(database: Any, eventually: Any) -> Callable[[int], Any]:
    """Waits until so many users wait to be made."""

    def wait(count: int) -> Any:
        async def reached() -> bool:
            return bool(database.waiting >= count)

        return eventually(reached)

    return wait


async def test_too_many_requests_at_once(broker: Any, database: Any, waiting: Any) -> None:
    """503 with Retry-After for what is too much; health still answers, and afterwards all is as before."""
    database.gate.clear()
    held = [asyncio.create_task(broker("GET", "database/creds/app")) for _ in range(2)]
    await waiting(2)
    answer = await broker("GET", "database/roles/app")
    assert answer.status == 503
    assert "max_in_flight" in answer.errors[0]
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await broker("GET", "sys/health")).status == 200
    database.gate.set()
    assert [(await task).status for task in held] == [200, 200]
    assert (await broker("GET", "database/roles/app")).status == 200


@pytest.mark.usefixtures("brief_requests")
async def test_a_request_that_hangs(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 in bounded time, on record."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Trials, "check", hang)
    answer = await broker("PUT", "database/check/main")
    assert answer.status == 503
    assert answer.errors == ["not done within 3 s; it may still happen"]
    assert answer.errors[0] in [entry.get("error") for entry in broker.audit()]


@pytest.mark.usefixtures("brief_requests")
async def test_a_request_that_takes_too_long(broker: Any, database: Any, eventually: Any) -> None:
    """503 in bounded time, on record, and what was begun is removed."""
    database.gate.clear()
    answer = await broker("GET", "database/creds/app")
    assert answer.status == 503
    assert "not done within 2 s" in answer.errors[0]
    assert answer.errors[0] in [entry.get("error") for entry in broker.audit()]
    database.gate.set()

    async def gone() -> bool:
        return (await broker("LIST", "sys/leases/lookup/database/creds/app")).status == 404

    await eventually(gone)
    assert database.users == set()


async def test_too_many_connections(broker: Any) -> None:
    """What is one too many is closed at once; the others live on."""
    host, _, port = broker.address.removeprefix("http://").rpartition(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(10)]
    refused = 0
    for reader, writer in opened:
        writer.write(b"GET /v1/sys/health HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            refused += not (await reader.read(12)).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            refused += 1
        writer.close()
    assert 2 <= refused <= 4


async def test_without_an_audit_log_nothing_is_done(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, and the write did not happen."""

    async def full(_self: Trail, _entries: Sequence[bytes]) -> None:
        raise AuditUnavailable("the disc is full")

    with monkeypatch.context() as patched:
        patched.setattr(Trail, "record", full)
        answer = await broker("PUT", "database/roles/other", {"db_name": "pg"})
        assert (answer.status, answer.errors) == (503, ["the disc is full"])
        assert (await broker("GET", "database/creds/app", token="s.wrong")).status == 503
    assert (await broker("GET", "database/roles/other")).status == 404


async def test_an_answer_that_can_not_be_recorded_is_withheld(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token was made, but nobody hears of it."""
    record = Trail.record

    async def only_requests(self: Trail, entries: Sequence[bytes]) -> None:
        if any(b'"type":"response"' in entry for entry in entries):
            raise AuditUnavailable("the disc is full")
        await record(self, entries)

    monkeypatch.setattr(Trail, "record", only_requests)
    answer = await broker("POST", "auth/token/create", {})
    assert answer.status == 503
    assert b"s." not in answer.raw
