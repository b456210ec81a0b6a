"""Whether a log is whole: follows the chain through its files and names the first line that breaks it.

Each file is read once, a line at a time, whatever its size. Two things that crashes explain break nothing and are remarked on:
a torn line that the broker closed off right after it, and a file that was rotated away while a broker that had crashed was
down, so that the next file goes on from the older head of the store. What can't be seen here: lines cut off the end beyond the
head that the store kept, and what somebody wrote who had the key.
"""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

from broker.audit.chain import GENESIS, LINE_MAX, Chain, Head, Link, parse
from broker.audit.resume import closes_off, previous_named


class Wrong(StrEnum):
    """What is wrong with a line."""

    ALTERED = "altered"
    """Its text is not what was written; the lines after it vouch for its MAC, where there are any."""
    FORGED = "forged"
    """Its MAC is none that this key made here: the MAC was altered, or the line was made by somebody without the key."""
    MISSING = "missing"
    """Lines before it are gone."""
    OUT_OF_ORDER = "out of order"
    """It stands in another place than it was written, or twice."""
    TORN = "torn"
    """It ends in the middle, and the broker did not close it off."""
    CUT_OFF = "cut off"
    """The store knows of later lines than the last one."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """The first thing that is wrong."""

    wrong: Wrong
    file: Path
    line: int
    """From 1, in that file; for what is missing, the line before which it is missing; for a cut-off tail, the last line."""
    sequence: int
    """The sequence number that the chain asks for here."""
    detail: str


@dataclass(slots=True)
class Extent:
    """What was read of one file."""

    file: Path
    lines: int = 0
    first: int | None = None
    """The sequence numbers of its first and last sound line."""
    last: int | None = None


@dataclass(slots=True)
class Report:
    """What a verification found."""

    extents: list[Extent] = field(default_factory=list)
    flaw: Flaw | None = None
    starts_at: int | None = None
    """The sequence number of the first line whose place in the chain was proved; above 1 when the oldest files are gone."""
    ends_at: int = 0
    """The sequence number of the last sound line."""
    remarks: list[str] = field(default_factory=list)
    """What is odd but breaks nothing, each led by `file:line`."""

    @property
    def begins_at(self) -> int | None:
        """The sequence number of the first sound line, proved or not; None where there is none."""
        return next((extent.first for extent in self.extents if extent.first is not None), None)

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return self.flaw is None


@dataclass(frozen=True, slots=True)
class _Line:
    extent: Extent
    number: int
    raw: bytes

    @property
    def place(self) -> str:
        return f"{self.extent.file}:{self.number}"


def verify(files: Sequence[Path], key: bytes, head: Head | None = None) -> Report:
    """Follows the chain through `files`, the oldest first (`.gz` is read as such), up to the first flaw.

    `head` is the newest entry that the store knows of: with it a cut-off tail is found, and a log that was made anew with a
    stolen key. Raises `OSError` when a file can't be read.
    """
    report = Report()
    lines = _lines(files, report)
    report.flaw = _Walk(Chain(key), head, report).over(lines)
    return report


def _lines(files: Sequence[Path], report: Report) -> Iterator[_Line]:
    for file in files:
        extent = Extent(file)
        report.extents.append(extent)
        try:
            with _opened(file) as stream:
                while raw := stream.readline(LINE_MAX):
                    extent.lines += 1
                    yield _Line(extent, extent.lines, raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            # What gzip raises does not name the file, and for one that was cut off is no OSError.
            raise OSError(errno.EIO, str(error), str(file)) from error


def _opened(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


class _Walk:
    def __init__(self, chain: Chain, head: Head | None, report: Report) -> None:
        self._chain = chain
        self._head = head
        self._report = report
        self._link: Link | None = None
        """Of the last sound line; None before the first."""
        self._at: _Line | None = None
        self._at_odds: Flaw | None = None
        """With the store about its head; settled at the end, since a file that goes back may hold the head's entry again."""

    def over(self, lines: Iterator[_Line]) -> Flaw | None:
        suspect: _Line | None = None
        for line in lines:
            link = self._sound(line)
            if suspect is not None:
                if link is None or not _excuses(line, suspect):
                    return self._diagnose(suspect, line, lines)
                self._report.remarks.append(f"{suspect.place}: torn by a crash, and the log goes on after it")
            suspect = line if link is None else None
            if link is None:
                continue
            self._take(line, link)
        if suspect is not None:
            return self._diagnose(suspect, None, lines)
        return self._at_odds or self._cut_off()

    def _sound(self, line: _Line) -> Link | None:
        """The line's link when the chain asks for it here."""
        if self._link is not None:
            return self._chain.follow(self._link, line.raw) or self._gone_back(line, self._link)
        link = self._chain.follow(GENESIS, line.raw)
        if link is None and (previous := previous_named(line.raw)) is not None:
            link = self._chain.follow(previous, line.raw)
        if link is not None:
            self._report.starts_at = link.sequence
        elif line.number == 1 and (chained := parse(line.raw)) is not None and chained.link.sequence > 1:
            # The line before it was not given, so its own text can't be proved; its MAC is, by the line after it.
            link = chained.link
            self._report.starts_at = link.sequence + 1
        return link

    def _gone_back(self, line: _Line, last: Link) -> Link | None:
        """A file's first line that the broker began without knowing the end of the file before."""
        previous = previous_named(line.raw) if line.number == 1 else None
        if previous is None or previous.sequence >= last.sequence:
            return None
        link = self._chain.follow(previous, line.raw)
        if link is not None:
            self._report.remarks.append(
                f"{line.place}: goes on from sequence {previous.sequence}, though the file before ends with {last.sequence}: "
                "rotated while the broker was down"
            )
        return link

    def _take(self, line: _Line, link: Link) -> None:
        self._link, self._at = link, line
        line.extent.first = line.extent.first or link.sequence
        line.extent.last = self._report.ends_at = link.sequence
        if self._head is not None and link.sequence == self._head.sequence:
            told = "the store knows another MAC for this entry"
            self._at_odds = None if link.mac == self._head.mac else _flaw(Wrong.FORGED, line, link.sequence, told)

    def _cut_off(self) -> Flaw | None:
        if self._head is None or self._head.sequence <= self._report.ends_at:
            return None
        file = self._at.extent.file if self._at else self._report.extents[-1].file
        number = self._at.number if self._at else 0
        following = self._report.ends_at + 1
        if self._at is None:
            return Flaw(
                Wrong.CUT_OFF, file, number, following, f"it is empty, and the store knows of {self._head.sequence} entries"
            )
        detail = f"the store knows of entries up to {self._head.sequence}; {_span(following, self._head.sequence)} cut off"
        return Flaw(Wrong.CUT_OFF, file, number, following, detail)

    def _diagnose(self, suspect: _Line, after: _Line | None, rest: Iterator[_Line]) -> Flaw:
        """What is wrong with the first line that does not follow; `after` is the one behind it."""
        previous = self._link or GENESIS
        asked = previous.sequence + 1
        chained = parse(suspect.raw)
        if chained is None:
            return self._shapeless(suspect, after, asked)
        found = chained.link.sequence
        if found == asked:
            return self._unproved(suspect, after, chained.link)
        if found < asked:
            return _flaw(Wrong.OUT_OF_ORDER, suspect, asked, f"sequence {found} stands here, after {previous.sequence}")
        ahead = [] if after is None else [after]
        elsewhere = self._find(previous, ahead) or self._find(previous, rest)
        if elsewhere is not None:
            return _flaw(Wrong.OUT_OF_ORDER, suspect, asked, f"sequence {found} stands here, and {asked} at {elsewhere.place}")
        return _flaw(Wrong.MISSING, suspect, asked, f"{_span(asked, found - 1)} missing before it")

    def _shapeless(self, suspect: _Line, after: _Line | None, asked: int) -> Flaw:
        if not suspect.raw.endswith(b"\n") and len(suspect.raw) < LINE_MAX:
            detail = "it has no end and nothing closes it off; a broker that writes it now, or starts, ends that"
            return _flaw(Wrong.TORN, suspect, asked, detail)
        if after is not None and self._chain.follow(self._link or GENESIS, after.raw):
            return _flaw(
                Wrong.FORGED,
                suspect,
                asked,
                f"line {suspect.number} is not a line of this log, and stands between two that are",
            )
        return _flaw(Wrong.ALTERED, suspect, asked, f"line {suspect.number} is not a line of this log")

    def _unproved(self, suspect: _Line, after: _Line | None, claimed: Link) -> Flaw:
        hint = "" if self._link is not None else ", or the key is not this log's"
        if after is not None and self._chain.follow(claimed, after.raw) is None:
            return _flaw(Wrong.FORGED, suspect, claimed.sequence, f"its MAC is none that the key made here{hint}")
        return _flaw(Wrong.ALTERED, suspect, claimed.sequence, f"its text does not match its MAC{hint}")

    def _find(self, previous: Link, lines: Iterable[_Line]) -> _Line | None:
        return next((line for line in lines if self._chain.follow(previous, line.raw)), None)


def _excuses(line: _Line, suspect: _Line) -> bool:
    """Whether a sound line explains the torn one before it: it closes it off, or begins the file after it."""
    if closes_off(line.raw, suspect.raw.removesuffix(b"\n")):
        return True
    return line.number == 1 and not suspect.raw.endswith(b"\n") and previous_named(line.raw) is not None


def _flaw(wrong: Wrong, line: _Line, sequence: int, detail: str) -> Flaw:
    return Flaw(wrong, line.extent.file, line.number, sequence, detail)


def _span(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
