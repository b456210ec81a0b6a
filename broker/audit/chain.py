r"""How entries are bound to one another. Pure: a key, the link before and an entry in; a line out.

A line is the entry with its chain put in before the last brace, byte for byte:

    {"time":...,"type":"request",...,"chain":{"seq":41,"mac":"<64 hex digits>"}}\n
    `------- entry without its brace -------'

    mac = HMAC-SHA256(chain key, sequence (8 bytes, big-endian) | MAC of the line before (32 bytes) | entry, brace included)

The first line ever has sequence 1 and follows `GENESIS`. The chain key is derived from the audit key under a label that holds
the version, so a hashed value of an entry (`broker.audit.entry.Hasher`, another label) never equals a MAC.
Whoever lacks the key can neither alter, add, drop nor reorder a line unseen; a cut-off end shows against the store's head.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from broker.mac import Mac

_LABEL = b"broker/audit/chain/v1"
_SUFFIX = re.compile(rb',"chain":\{"seq":([1-9][0-9]{0,18}),"mac":"([0-9a-f]{64})"\}\}\n\Z')
SUFFIX_MAX = len(',"chain":{"seq":,"mac":""}}\n') + 19 + 64
"""No chain takes more bytes than this at the end of a line, its newline included."""
LINE_MAX = 16 * 1024 * 1024
"""No line is longer; what reads lines gives up there instead of filling the memory."""


class Head(Protocol):
    """The newest entry that somebody knows of: what the store kept, or a link of this chain."""

    @property
    def sequence(self) -> int:
        """Its number, from 1."""
        ...

    @property
    def mac(self) -> bytes:
        """Its MAC, 32 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """What a line hands to the one after it."""

    sequence: int
    mac: bytes


GENESIS = Link(0, bytes(32))
"""What the first line follows."""


@dataclass(frozen=True, slots=True)
class Chained:
    """A line taken apart; nothing is checked but its form."""

    entry: bytes
    link: Link


class Chain:
    """Makes and checks lines under one audit key (32 bytes)."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = Mac(Mac(key).digest(_LABEL))

    def extend(self, previous: Link, entries: Iterable[bytes]) -> tuple[Link, bytes]:
        """The entries as consecutive lines, and the link of the last; each entry must be one `is_entry` says yes to."""
        lines = []
        for entry in entries:
            previous = Link(previous.sequence + 1, self._mac(previous, entry))
            lines.append(b'%b,"chain":{"seq":%d,"mac":"%b"}}\n' % (entry[:-1], previous.sequence, previous.mac.hex().encode()))
        return previous, b"".join(lines)

    def follow(self, previous: Head, line: bytes) -> Link | None:
        """The link of a line (newline included), or None when it is not the authentic successor of `previous`."""
        chained = parse(line)
        if chained is None or chained.link.sequence != previous.sequence + 1:
            return None
        return chained.link if hmac.compare_digest(chained.link.mac, self._mac(previous, chained.entry)) else None

    def _mac(self, previous: Head, entry: bytes) -> bytes:
        return self._keyed.digest((previous.sequence + 1).to_bytes(8, "big") + previous.mac + entry)


def is_entry(entry: bytes) -> bool:
    """Whether these bytes can become a line: one JSON object that is not empty, without a newline, not over-long."""
    return entry[:2] == b'{"' and entry[-1:] == b"}" and b"\n" not in entry and len(entry) <= LINE_MAX - SUFFIX_MAX


def parse(line: bytes) -> Chained | None:
    """A line (newline included) taken apart, or None when it has not exactly the form above."""
    match = _SUFFIX.search(line, max(0, len(line) - SUFFIX_MAX))
    if match is None:
        return None
    entry = line[: match.start()] + b"}"
    return Chained(entry, _link(match)) if is_entry(entry) else None


def link_at_end(tail: bytes) -> Link | None:
    """The link that the last `SUFFIX_MAX` bytes of a line claim, or None when they hold none."""
    match = _SUFFIX.search(tail)
    return None if match is None else _link(match)


def _link(match: re.Match[bytes]) -> Link:
    return Link(int(match[1]), bytes.fromhex(match[2].decode()))
