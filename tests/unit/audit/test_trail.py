"""The trail: order, one flush for all who wait, refusal and recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from broker.audit.chain import Chain, Link
from broker.audit.resume import Finding
from broker.audit.trail import Trail
from broker.errors import AuditBroken, AuditUnavailable

Entry = Callable[[object], bytes]


@pytest.fixture
def confirmed() -> list[tuple[int, bytes]]:
    return []


@pytest.fixture
async def trail(device: Any, key: bytes, clock: Any, confirmed: list[tuple[int, bytes]]) -> AsyncIterator[Trail]:
    made = await Trail.open(device, key, None, lambda *head: confirmed.append(head), clock=clock, waiting_max=10)
    device.calls.clear()
    device.entered.clear()
    yield made
    device.gate.set()
    await made.close()


def _marks(content: bytes) -> list[str]:
    return [orjson.loads(line).get("mark", orjson.loads(line)["type"]) for line in content.splitlines()]


async def _held(trail: Trail, device: Any, entry: Entry) -> asyncio.Task[None]:
    """A first entry that the writer is stuck with, so that what comes after waits."""
    device.gate.clear()
    first = asyncio.ensure_future(trail.record([entry("first")]))
    await asyncio.to_thread(device.entered.wait)
    return first


async def test_one_flush_serves_all_who_wait(
    trail: Trail, device: Any, entry: Entry, confirmed: list[tuple[int, bytes]]
) -> None:
    """Everything that queued while the device was busy goes out in one write and one flush, in the order of asking."""
    first = await _held(trail, device, entry)
    waiting = [asyncio.ensure_future(trail.record([entry(f"{number}a"), entry(f"{number}b")])) for number in range(4)]
    await asyncio.sleep(0)
    device.gate.set()
    await asyncio.gather(first, *waiting)
    assert device.calls == ["write", "flush", "write", "flush"]
    assert _marks(device.content) == ["first", "0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]
    assert [sequence for sequence, _ in confirmed] == [1, 9]
    last = Chain(b"k" * 32).follow(Link(8, _mac(device.content, 8)), device.content.splitlines(keepends=True)[8])
    assert last == Link(*confirmed[-1])


def _mac(content: bytes, sequence: int) -> bytes:
    return bytes.fromhex(orjson.loads(content.splitlines()[sequence - 1])["chain"]["mac"])


async def test_record_returns_only_after_the_flush(trail: Trail, device: Any, entry: Entry) -> None:
    """Nobody hears of success while the device has not flushed."""
    first = await _held(trail, device, entry)
    assert not first.done()
    device.gate.set()
    await first
    assert device.flushed == len(device.content) > 0


async def test_a_full_device_refuses_all_who_wait_and_recovers_by_itself(trail: Trail, device: Any, entry: Entry) -> None:
    """Every waiting caller is refused, nothing of theirs stays, and the next entry after space came back is taken."""
    await trail.record([entry(1)])
    device.space = 50
    results = await asyncio.gather(*(trail.record([entry(number)]) for number in (2, 3)), return_exceptions=True)
    assert [type(result) for result in results] == [AuditUnavailable] * 2
    assert "No space left on device" in str(results[0])
    device.space = None
    await trail.record([entry(4)])
    assert _marks(device.content) == ["1", "4"]


async def test_an_unforeseen_error_refuses_rather_than_hangs(
    trail: Trail, device: Any, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that nobody thought of reaches those who wait, and the trail lives on."""

    def broken(_data: bytes) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(device, "write", broken)
        with pytest.raises(AuditUnavailable, match="ZeroDivisionError"):
            await trail.record([entry(1)])
    await trail.record([entry(2)])
    assert _marks(device.content) == ["2"]


async def test_a_full_queue_refuses_at_once(trail: Trail, device: Any, entry: Entry) -> None:
    """Past the limit nobody waits in vain; when the queue is empty again there is room."""
    first = await _held(trail, device, entry)
    second = asyncio.ensure_future(trail.record([entry(number) for number in range(9)]))
    await asyncio.sleep(0)
    with pytest.raises(AuditUnavailable, match="10 entries wait"):
        await trail.record([entry("refused")])
    device.gate.set()
    await asyncio.gather(first, second)
    await trail.record([entry("room")])
    assert _marks(device.content)[-2:] == ["8", "room"]


async def test_a_cancelled_caller_leaves_its_entry(trail: Trail, device: Any, entry: Entry) -> None:
    """Who goes away while waiting takes nothing back, and does not disturb the others."""
    first = await _held(trail, device, entry)
    gone = asyncio.ensure_future(trail.record([entry("gone")]))
    stays = asyncio.ensure_future(trail.record([entry("stays")]))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    device.gate.set()
    await asyncio.gather(first, stays)
    assert _marks(device.content) == ["first", "gone", "stays"]


async def test_cancelled_callers_are_not_told_of_a_failure(trail: Trail, device: Any, entry: Entry) -> None:
    """A refusal skips those who went away, and their places in the queue become free."""
    first = await _held(trail, device, entry)
    gone = asyncio.ensure_future(trail.record([entry(number) for number in range(8)]))
    stays = asyncio.ensure_future(trail.record([entry("stays")]))
    await asyncio.sleep(0)
    gone.cancel()
    device.space = 0
    device.gate.set()
    for refused in (first, stays):
        with pytest.raises(AuditUnavailable):
            await refused
    device.space = None
    await trail.record([entry("room")])
    assert _marks(device.content) == ["room"]


@pytest.mark.parametrize("bad", [b"", b"{}", b'{"a":1}\n', b'{"a":"\n"}', b"[]"])
async def test_what_can_not_be_chained_is_refused(trail: Trail, device: Any, entry: Entry, bad: bytes) -> None:
    """An entry that would break its line is refused before anything is written, with those beside it."""
    with pytest.raises(AuditUnavailable, match="JSON object"):
        await trail.record([entry(1), bad])
    assert device.content == b""


async def test_nothing_to_record_waits_for_nothing(trail: Trail, device: Any) -> None:
    """No entries, no write."""
    await trail.record([])
    assert device.calls == []


async def test_entries_before_a_reopen_stay_in_the_old_file(trail: Trail, device: Any, entry: Entry) -> None:
    """The order of recording and reopening decides the file, even when all of it waited."""
    first = await _held(trail, device, entry)
    before = asyncio.ensure_future(trail.record([entry("before")]))
    await asyncio.sleep(0)
    device.rotated = b""
    trail.reopen()
    after = asyncio.ensure_future(trail.record([entry("after")]))
    await asyncio.sleep(0)
    device.gate.set()
    await asyncio.gather(first, before, after)
    assert (_marks(device.shelf[0]), _marks(device.content)) == (["first", "before"], ["rotation", "after"])


async def test_a_failed_reopen_is_made_good_by_the_next_entry(trail: Trail, device: Any, entry: Entry) -> None:
    """A file that can't be opened refuses entries until it can."""
    device.fails = {"open"}
    trail.reopen()
    with pytest.raises(AuditUnavailable, match="Input/output error"):
        await trail.record([entry(1)])
    device.fails = set()
    await trail.record([entry(2)])
    assert _marks(device.content) == ["2"]


async def test_close_writes_what_waits_and_may_be_called_twice(trail: Trail, device: Any, entry: Entry) -> None:
    """Nothing accepted is lost by closing; afterwards the trail refuses."""
    first = await _held(trail, device, entry)
    last = asyncio.ensure_future(trail.record([entry("last")]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(trail.close())
    await asyncio.sleep(0)
    with pytest.raises(AuditUnavailable, match="closed"):
        await trail.record([entry("late")])
    device.gate.set()
    await asyncio.gather(first, last, closing)
    await trail.close()
    assert _marks(device.content) == ["first", "last"]
    assert device.calls[-1] == "close"


async def test_a_start_confirms_what_the_file_holds_beyond_the_head(device: Any, key: bytes, clock: Any, entry: Entry) -> None:
    """Lines that the store did not know of are flushed first, then confirmed."""
    link, device.content = Chain(key).extend(Link(0, bytes(32)), [entry(1), entry(2)])
    confirmed: list[tuple[int, bytes]] = []
    trail = await Trail.open(device, key, None, lambda *head: confirmed.append(head), clock=clock)
    await trail.close()
    assert confirmed == [(link.sequence, link.mac)]
    assert "flush" in device.calls
    assert trail.resumption.finding is Finding.INTACT


async def test_a_start_writes_down_what_it_found(device: Any, key: bytes, clock: Any) -> None:
    """A rotation, and whether somebody must look, is known after the start; the note is durable by then."""
    trail = await Trail.open(device, key, Link(7, b"m" * 32), lambda *_: None, clock=clock)
    await trail.close()
    assert (trail.resumption.finding, trail.resumption.alert) == (Finding.ROTATED, False)
    assert _marks(device.content) == ["rotation"]
    assert device.flushed == len(device.content)


async def test_a_full_disc_does_not_prevent_the_start(device: Any, key: bytes, clock: Any, entry: Entry) -> None:
    """The broker starts, refuses while the disc is full, and then goes on."""
    device.space = 5
    trail = await Trail.open(device, key, Link(7, b"m" * 32), lambda *_: None, clock=clock)
    with pytest.raises(AuditUnavailable):
        await trail.record([entry(1)])
    device.space = None
    await trail.record([entry(2)])
    await trail.close()
    assert _marks(device.content) == ["rotation", "2"]


async def test_a_device_that_does_not_open_prevents_the_start(device: Any, key: bytes, clock: Any) -> None:
    """The reason is in the error, and no thread stays behind."""
    device.fails = {"open"}
    with pytest.raises(AuditUnavailable, match="memory can't be opened: Input/output error"):
        await Trail.open(device, key, None, lambda *_: None, clock=clock)


async def test_a_strangers_log_prevents_the_start(device: Any, key: bytes, clock: Any, entry: Entry) -> None:
    """A log under another key is not gone on with."""
    _, device.content = Chain(b"l" * 32).extend(Link(0, bytes(32)), [entry(1)])
    with pytest.raises(AuditBroken):
        await Trail.open(device, key, None, lambda *_: None, clock=clock)


async def test_a_confirm_that_fails_keeps_nobody_waiting(device: Any, key: bytes, clock: Any, entry: Entry) -> None:
    """The callback's fault goes to the loop's handler; those who wait hear of their durable entries."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context["exception"]))

    def confirm(_sequence: int, _mac: bytes) -> None:
        raise ZeroDivisionError

    trail = await Trail.open(device, key, None, confirm, clock=clock)
    await trail.record([entry(1)])
    await trail.close()
    assert [type(fault) for fault in faults] == [ZeroDivisionError]
