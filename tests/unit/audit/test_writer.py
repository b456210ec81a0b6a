"""The writer: all of a batch or nothing, however the device fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from broker.audit.chain import GENESIS, Chain, Link
from broker.audit.resume import Finding
from broker.audit.writer import Writer


@pytest.fixture
def writer(device: Any, key: bytes, clock: Any) -> Writer:
    made = Writer(device, Chain(key), clock, None)
    made.open()
    return made


def _marks(content: bytes) -> list[str]:
    return [orjson.loads(line).get("mark", orjson.loads(line)["type"]) for line in content.splitlines()]


def _chained(content: bytes, key: bytes, after: Link = GENESIS) -> Link:
    for line in content.splitlines(keepends=True):
        link = Chain(key).follow(after, line)
        assert link is not None, line
        after = link
    return after


def test_a_batch_is_one_write_and_one_flush(writer: Writer, device: Any, entry: Callable[[object], bytes]) -> None:
    """However many entries, the device hears of them once."""
    writer.append([entry(1), entry(2), entry(3)])
    assert device.calls == ["open", "reader", "write", "flush"]
    assert _marks(device.content) == ["1", "2", "3"]


def test_a_partial_write_is_taken_back(writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes) -> None:
    """When space ends in the middle of a line, nothing of the batch stays, and its numbers are used by the next."""
    writer.append([entry(1)])
    device.space = 150
    with pytest.raises(OSError, match="No space"):
        writer.append([entry(2), entry(3)])
    assert _marks(device.content) == ["1"]
    device.space = None
    assert writer.append([entry(4)]).sequence == 2
    assert _marks(device.content) == ["1", "4"]
    _chained(device.content, key)


def test_what_was_not_flushed_is_taken_back(writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes) -> None:
    """A batch whose flush failed was refused, so it does not stay."""
    writer.append([entry(1)])
    device.fails = {"flush"}
    with pytest.raises(OSError, match="Input/output"):
        writer.append([entry(2)])
    device.fails = set()
    writer.append([entry(3)])
    assert _marks(device.content) == ["1", "3"]
    _chained(device.content, key)


def test_nothing_is_written_after_a_torn_line(
    writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes
) -> None:
    """While a partial line can't be cut off, batches are refused before they touch the device; then all is well."""
    writer.append([entry(1)])
    device.space, device.fails = 60, {"take_back"}
    for _ in range(3):
        with pytest.raises(OSError, match=r"space|Input/output"):
            writer.append([entry(2)])
    assert device.calls.count("write") == 2
    device.space, device.fails = None, set()
    writer.append([entry(3)])
    assert _marks(device.content) == ["1", "3"]
    _chained(device.content, key)


def test_a_torn_line_left_in_the_old_file_is_named_by_the_new(
    writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes
) -> None:
    """A fragment that could not be cut off before the file was rotated is closed off by the new file's first line."""
    writer.append([entry(1)])
    whole = len(device.content)
    device.space, device.fails = whole + 40, {"take_back"}
    with pytest.raises(OSError, match="No space"):
        writer.append([entry(2), entry(3)])
    device.space, device.rotated = None, b""
    writer.reopen()
    writer.append([entry(4)])
    (old,) = device.shelf
    assert old[whole:].count(b"\n") == 1
    fragment = old.splitlines(keepends=True)[2]
    note = orjson.loads(device.content.splitlines()[0])
    assert (note["type"], note["previous"]["seq"], note["closed_off"]["bytes"]) == ("rotation", 2, len(fragment))
    assert _marks(device.content)[1:] == ["4"]
    _chained(device.content, key, _chained(old.removesuffix(fragment), key))


def test_a_new_file_goes_on_with_the_chain(writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes) -> None:
    """After a rotation the first line of the new file follows the last of the old one and says so."""
    writer.append([entry(1)])
    device.rotated = b""
    writer.reopen()
    writer.append([entry(2)])
    assert (_marks(device.shelf[0]), _marks(device.content)) == (["1"], ["rotation", "2"])
    assert _chained(device.shelf[0] + device.content, key).sequence == 3


def test_reopening_the_same_file_changes_nothing(writer: Writer, device: Any, entry: Callable[[object], bytes]) -> None:
    """A signal without a rotation leaves no trace in the log."""
    writer.append([entry(1)])
    writer.reopen()
    writer.append([entry(2)])
    assert _marks(device.content) == ["1", "2"]


def test_a_file_that_can_not_be_reopened_is_tried_again(
    writer: Writer, device: Any, entry: Callable[[object], bytes], key: bytes
) -> None:
    """Nothing goes to the old file after a rotation, even if the new one can't be opened at first."""
    writer.append([entry(1)])
    device.rotated, device.fails = b"", {"open"}
    with pytest.raises(OSError, match="Input/output"):
        writer.reopen()
    with pytest.raises(OSError, match="Input/output"):
        writer.append([entry(2)])
    device.fails = set()
    writer.append([entry(3)])
    assert (_marks(device.shelf[0]), _marks(device.content)) == (["1"], ["rotation", "3"])


def test_a_note_is_written_once_it_can_be(device: Any, key: bytes, clock: Any, entry: Callable[[object], bytes]) -> None:
    """What was found at the start is told before the first entry that succeeds, even if the first attempt failed."""
    writer = Writer(device, Chain(key), clock, Link(9, b"m" * 32))
    assert writer.open().finding is Finding.ROTATED
    device.space = 3
    with pytest.raises(OSError, match="No space"):
        writer.append([entry(1)])
    device.space = None
    writer.append([entry(2)])
    assert _marks(device.content) == ["rotation", "2"]


def test_interference_while_running_is_noticed(writer: Writer, device: Any, entry: Callable[[object], bytes]) -> None:
    """Lines removed behind the broker's back are missed with the next batch, told in the log and logged as an error."""
    writer.append([entry(1), entry(2), entry(3)])
    device.content = b"".join(device.content.splitlines(keepends=True)[:1])
    with capture_logs() as logs:
        writer.append([entry(4)])
    assert [(log["log_level"], log["finding"], log["missing"]) for log in logs] == [("error", "tail missing", (2, 3))]
    assert _marks(device.content) == ["1", "recovery", "4"]


def test_an_open_that_fails_leaves_nothing_open(device: Any, key: bytes, clock: Any) -> None:
    """A device that opens but can't be read is closed again."""
    device.fails = {"reader"}
    with pytest.raises(OSError, match="Input/output"):
        Writer(device, Chain(key), clock, None).open()
    assert device.calls == ["open", "reader", "close"]


@pytest.mark.parametrize("left", [b"", None], ids=["emptied", "cut"])
def test_log_that_somebody_else_touched_is_told(
    writer: Writer, device: Any, entry: Callable[[object], bytes], left: bytes | None
) -> None:
    """An emptied log looks as after a rotation; since nobody asked for one, it is said aloud all the same."""
    writer.append([entry(1), entry(2)])
    device.content = device.content.splitlines(keepends=True)[0] if left is None else left
    with capture_logs() as logs:
        writer.append([entry(3)])
    assert [line["log_level"] for line in logs if line["log_level"] != "info"] == ["warning" if left == b"" else "error"]
