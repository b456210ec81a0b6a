"""Owns the device: chains, writes, flushes, and puts right what failed. Synchronous; `Trail` runs it in its thread."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import structlog

from broker.audit.chain import GENESIS, Chain, Head, Link
from broker.audit.devices.protocol import AuditDevice
from broker.audit.resume import Finding, Fragment, Resumption, examine
from broker.clock import Clock

_log = structlog.get_logger("broker.audit")


class Writer:
    """Appends entries to a device so that they are durable and chained, or not there at all.

    Sequence numbers are spent by success alone: a batch that failed leaves the chain where it was.
    """

    def __init__(self, device: AuditDevice, chain: Chain, clock: Clock, head: Head | None) -> None:
        self._device = device
        self._chain = chain
        self._clock = clock
        self._link = None if head is None else Link(head.sequence, head.mac)
        self._open = False
        self._unclean = False
        """Part of a failed batch may stand at the end of the device."""
        self._to_tell: Resumption | None = None
        """How the device was found, until that is written down."""
        self._left_behind: Fragment | None = None
        """What could not be taken back from a device that was then rotated away."""

    def open(self) -> Resumption:
        """Opens the device and finds where its chain goes on; nothing is written.

        Raises `OSError` when it can't be opened or read, and `AuditBroken` as `examine` does.
        """
        self._device.open()
        try:
            found = self._examine()
        except BaseException:
            self._device.close()
            raise
        if found.fragment is None and found.finding is Finding.ROTATED:
            found = replace(found, fragment=self._left_behind)
        self._link, self._to_tell = found.link, found
        self._open, self._unclean = True, False
        _tell(found)
        return found

    def append(self, entries: Iterable[bytes]) -> Link:
        """Writes the entries in order, with one flush; durable on return. Gives the link of the newest line.

        Raises `OSError`, and then none of them is there: what was written in part is cut off now or, where even that fails,
        before anything else is written. A device that could not be opened, or that somebody touched, is opened anew first.
        """
        previous = self._ready()
        told = self._to_tell
        notes = () if told is None else told.entries(self._clock.now_ms())
        link, lines = self._chain.extend(previous, [*notes, *entries])
        try:
            self._device.write((b"" if told is None else told.terminator) + lines)
            self._device.flush()
        except BaseException:
            self._unclean = True
            with suppress(OSError):
                self._take_back()
            raise
        self._link, self._to_tell, self._left_behind = link, None, None
        return link

    def reopen(self) -> None:
        """Lets go of the device and opens what stands in its place now; raises what `open` does, and `append` tries again."""
        if self._unclean:
            self._leave_behind()
        self.close()
        self.open()

    def close(self) -> None:
        """Lets go of the device."""
        self._open = False
        self._device.close()

    def _ready(self) -> Link:
        if self._open and self._unclean:
            self._take_back()
        if self._open and self._device.stale():
            self.close()
            if not self.open().alert:
                # Its end may look as after a rotation, which nobody asked for, and what stood before is not read again.
                _log.warning("the audit log was emptied, deleted or touched by somebody else", device=str(self._device))
        if not self._open:
            self.open()
        return self._link or GENESIS

    def _take_back(self) -> None:
        self._device.take_back()
        self._unclean = False

    def _leave_behind(self) -> None:
        with suppress(OSError):
            try:
                self._take_back()
            except OSError:
                # The failed batch stays in the old file: whole lines of it are part of the chain, the rest the new file names.
                found = self._examine()
                self._link, self._left_behind = found.link, found.fragment

    def _examine(self) -> Resumption:
        with self._device.reader() as log:
            return examine(log, self._chain, self._link)


def _tell(found: Resumption) -> None:
    if found.finding in {Finding.NEW, Finding.INTACT}:
        return
    facts = {"finding": str(found.finding), "goes_on_after": found.link.sequence, "missing": found.missing}
    if found.alert:
        _log.error("the audit log is not as it was left", **facts)
    else:
        _log.info("the audit log goes on", **facts)
