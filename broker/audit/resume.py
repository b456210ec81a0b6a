"""Where the chain goes on in a log that is opened: after a start, a crash, a rotation, or somebody's interference.

Two witnesses are compared: what the log holds, and the newest head that the caller knows (the store's, or the running trail's).

| The log holds | The chain goes on from | Finding |
|---|---|---|
| nothing, and no head is known | `GENESIS` | `NEW` |
| nothing, though a head is known | the head | `ROTATED` |
| authentic lines up to the head, or beyond it | its last line | `INTACT` |
| the same, then one line without its end | its last whole line | `TORN` |
| less than the head | the head | `TAIL_MISSING`, alert |
| other complete lines than the chain asks for | the last authentic one, or the head | `ALTERED`, alert |

All but `NEW` and `INTACT` are written down by an entry of their own, a note, whose `previous` names what it follows: so the
first line of a file can be checked without the file before it. A fragment is closed off by its length and SHA-256.
What stands between authentic lines is passed over here; `broker.audit.verify` names it.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import BinaryIO

import orjson

from broker.audit.chain import GENESIS, LINE_MAX, SUFFIX_MAX, Chain, Head, Link, link_at_end, parse
from broker.audit.entry import rfc3339
from broker.errors import AuditBroken

_BLOCK = 64 * 1024
_LEASE_ID = b'"lease_id":'
ROTATION, RECOVERY = "rotation", "recovery"
"""Types of the entries that tell what a log was found like."""
HANDED_OUT_MAX = 1_000
"""So many leases are named at most, the newest: enough to tell that a store lost them."""


class Finding(StrEnum):
    """What a log was found like when it was opened."""

    NEW = "new"
    INTACT = "intact"
    ROTATED = "rotated"
    TORN = "torn"
    TAIL_MISSING = "tail missing"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Bytes that belong to no authentic line."""

    size: int
    sha256: str
    lines: int
    """How many newlines are in it; a line torn by a crash has none."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How to go on with a log."""

    finding: Finding
    link: Link
    """What the next line follows."""
    terminator: bytes = b""
    """To be written before it: the end of a line that has none."""
    fragment: Fragment | None = None
    missing: tuple[int, int] | None = None
    """First and last sequence number that the log should hold and does not."""
    handed_out: tuple[str, ...] = ()
    """Ids of leases that were answered after the head: whoever kept the head had them on disc before, and must know them still."""

    @property
    def alert(self) -> bool:
        """Whether somebody should be told: neither a crash nor a rotation explains it."""
        return self.finding in {Finding.TAIL_MISSING, Finding.ALTERED}

    def entries(self, at_ms: int) -> tuple[bytes, ...]:
        """The entry that writes it down, or none."""
        if self.finding in {Finding.NEW, Finding.INTACT}:
            return ()
        entry: dict[str, object] = {
            "time": rfc3339(at_ms),
            "type": ROTATION if self.finding is Finding.ROTATED else RECOVERY,
            "reason": self.finding,
            "previous": {"seq": self.link.sequence, "mac": self.link.mac.hex()},
        }
        if self.fragment is not None:
            entry["closed_off"] = {"bytes": self.fragment.size, "sha256": self.fragment.sha256}
        if self.missing is not None:
            entry["missing"] = {"from": self.missing[0], "to": self.missing[1]}
        return (orjson.dumps(entry),)


def examine(log: BinaryIO, chain: Chain, head: Head | None) -> Resumption:
    """What a log holds, seen from `head`; reads only what was written after it, and never more than a line at once.

    Raises `AuditBroken` when no head is known and the log is not one that this key began: it belongs to another broker, or its
    store was lost.
    """
    known = GENESIS if head is None else Link(head.sequence, head.mac)
    size = log.seek(0, os.SEEK_END)
    if size == 0:
        return Resumption(Finding.NEW if known == GENESIS else Finding.ROTATED, known)
    begin, anchor = _anchor(log, size, known)
    walked = _walk(log, begin, chain, known)
    found = _judged(walked, anchor, known, _fragment(log, walked.end), _terminator(log))
    return replace(found, handed_out=tuple(walked.handed_out))


def _judged(walked: _Walked, anchor: Link | None, known: Link, fragment: Fragment | None, terminator: bytes) -> Resumption:
    if anchor is not None and anchor != known and not walked.told:
        missing = (anchor.sequence + 1, known.sequence) if anchor.sequence < known.sequence else None
        finding = Finding.ALTERED if missing is None else Finding.TAIL_MISSING
        return Resumption(finding, walked.link, terminator, fragment, missing)
    if fragment is None:
        return Resumption(Finding.INTACT, walked.link, terminator)
    if fragment.lines and walked.link == GENESIS:
        raise AuditBroken(
            "the audit log holds lines that this broker's key did not make, and its store, which may be new, knows of none; "
            "if the store was lost, put its copy back; else move the log away, or name another file, and start again"
        )
    return Resumption(Finding.ALTERED if fragment.lines else Finding.TORN, walked.link, terminator, fragment)


def previous_named(line: bytes) -> Link | None:
    """The link that a note says it follows, or None for any other line; whether it does is for `Chain.follow` to say."""
    chained = parse(line)
    if chained is None:
        return None
    try:
        entry = orjson.loads(chained.entry)
        if entry.get("type") not in {ROTATION, RECOVERY}:
            return None
        return Link(int(entry["previous"]["seq"]), bytes.fromhex(entry["previous"]["mac"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def closes_off(line: bytes, fragment: bytes) -> bool:
    """Whether a line is a note that exactly these bytes were found and closed off."""
    chained = parse(line)
    try:
        told = orjson.loads(chained.entry)["closed_off"] if chained is not None else None
        return bool(told == {"bytes": len(fragment), "sha256": hashlib.sha256(fragment).hexdigest()})
    except (ValueError, KeyError, TypeError):
        return False


def _handed_out(line: bytes) -> str:
    """The lease that an authentic line says was given to whoever asked for it, or nothing: its id begins with the path asked for."""
    if _LEASE_ID not in line:
        return ""
    try:
        entry = orjson.loads(line)
        lease_id, asked = str(entry["response"]["secret"]["lease_id"]), entry["request"]["path"]
    except (ValueError, KeyError, TypeError):
        return ""
    return lease_id if lease_id.rpartition("/")[0] == asked else ""


def _anchor(log: BinaryIO, size: int, known: Link) -> tuple[int, Link | None]:
    """The last line that is not newer than `known` (where the one after it begins, and its link), or the log's beginning."""
    if known == GENESIS:
        return 0, None
    for newline in _newlines_backwards(log, size):
        begin = max(0, newline + 1 - SUFFIX_MAX)
        link = link_at_end(_read(log, begin, newline + 1 - begin))
        if link is not None and link.sequence <= known.sequence:
            return newline + 1, link
    return 0, None


def _newlines_backwards(log: BinaryIO, size: int) -> Iterator[int]:
    for start in range((size - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        block = _read(log, start, min(_BLOCK, size - start))
        found = block.rfind(b"\n")
        while found >= 0:
            yield start + found
            found = block.rfind(b"\n", 0, found)


@dataclass(slots=True)
class _Walked:
    """How far authentic lines go."""

    link: Link
    end: int
    told: bool = False
    """The first of them is a note, so what stands before it was found at an earlier start and written down then."""
    handed_out: deque[str] = field(default_factory=lambda: deque(maxlen=HANDED_OUT_MAX))


def _walk(log: BinaryIO, begin: int, chain: Chain, known: Link) -> _Walked:
    walked, position = _Walked(known, begin), begin
    log.seek(begin)
    while line := log.readline(LINE_MAX):
        position += len(line)
        # A line that lacks nothing but its newline was written whole; it only has to be ended.
        whole = line if line.endswith(b"\n") else line + b"\n"
        link = chain.follow(walked.link, whole) or (_follow_named(chain, whole) if walked.end == 0 else None)
        if link is not None:
            walked.told = walked.told or (walked.link == known and previous_named(whole) is not None)
            walked.link, walked.end = link, position
            if lease_id := _handed_out(whole):
                walked.handed_out.append(lease_id)
    return walked


def _follow_named(chain: Chain, line: bytes) -> Link | None:
    """A note at the beginning of a file, where the head that the store kept is older than the file."""
    previous = previous_named(line)
    return None if previous is None else chain.follow(previous, line)


def _fragment(log: BinaryIO, begin: int) -> Fragment | None:
    log.seek(begin)
    digest, size, lines = hashlib.sha256(), 0, 0
    while block := log.read(_BLOCK):
        digest.update(block)
        size += len(block)
        lines += block.count(b"\n")
    return Fragment(size, digest.hexdigest(), lines) if size else None


def _terminator(log: BinaryIO) -> bytes:
    log.seek(-1, os.SEEK_END)
    return b"" if log.read(1) == b"\n" else b"\n"


def _read(log: BinaryIO, begin: int, count: int) -> bytes:
    log.seek(begin)
    return log.read(count)
