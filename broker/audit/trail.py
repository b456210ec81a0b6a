"""The queue in front of the audit log: many wait, one thread writes, one flush serves them all."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from broker.audit.chain import GENESIS, Chain, Head, Link, is_entry
from broker.audit.devices.protocol import AuditDevice
from broker.audit.resume import Resumption
from broker.audit.writer import Writer
from broker.clock import Clock
from broker.errors import AuditUnavailable

_log = structlog.get_logger("broker.audit")
WAITING_MAX = 4096
"""Entries that may wait unless the caller says otherwise; a batch of this many is written in about 20 ms."""

Confirm = Callable[[int, bytes], None]
"""Told sequence and MAC of the newest durable entry, on the event loop, before those who wait hear of it."""


class _Order(Enum):
    REOPEN = auto()
    STOP = auto()


@dataclass(frozen=True, slots=True, eq=False)
class _Ask:
    entries: Sequence[bytes]
    done: asyncio.Future[None]


class Trail:
    """The audit log of a running broker."""

    def __init__(self, writer: Writer, resumption: Resumption, confirm: Confirm, waiting_max: int) -> None:
        self.resumption = resumption
        """How the log was found at the start; its `alert` is for somebody's eyes."""
        self._writer = writer
        self._confirm = confirm
        self._waiting_max = waiting_max
        self._waiting = 0
        self._failing = False
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._queue: queue.SimpleQueue[_Ask | _Order] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="audit", daemon=True)
        self._thread.start()

    @classmethod
    async def open(
        cls,
        device: AuditDevice,
        key: bytes,
        head: Head | None,
        confirm: Confirm,
        *,
        clock: Clock,
        waiting_max: int = WAITING_MAX,
    ) -> Trail:
        """Opens the log and goes on with its chain; `head` is the newest that the store kept, or None in a new store.

        Raises `AuditUnavailable` when the device can't be opened, and `AuditBroken` when it holds somebody else's log. A full
        disc is no reason not to start: the trail then refuses until there is space.
        """
        writer = Writer(device, Chain(key), clock, head)
        try:
            resumption = await asyncio.to_thread(writer.open)
        except OSError as error:
            raise AuditUnavailable(f"the audit log {device} can't be opened: {error.strerror}") from error
        trail = cls(writer, resumption, confirm, waiting_max)
        with suppress(AuditUnavailable):
            await trail._submit(())
        return trail

    def record(self, entries: Sequence[bytes]) -> asyncio.Future[None]:
        """Done when all the entries are durable, in this order and next to one another.

        Fails with `AuditUnavailable` when they are not: the device failed, too many wait already, an entry is not one JSON object
        on one line, or the trail is closed. Whoever is cancelled while waiting must take the entries as written.
        """
        if self._closing:
            return self._refused("the audit log is closed, since the broker is shutting down")
        if self._waiting >= self._waiting_max:
            return self._refused(f"{self._waiting} entries wait for the audit log already, so the request was refused")
        if not all(map(is_entry, entries)):
            return self._refused("an audit entry is no JSON object on one line, or over-long, so the request was refused")
        if entries:
            return self._submit(entries)
        done = self._loop.create_future()
        done.set_result(None)
        return done

    def reopen(self) -> None:
        """Entries recorded before go to the file that is open, later ones to what stands at its path then (SIGHUP)."""
        self._queue.put(_Order.REOPEN)

    async def close(self) -> None:
        """Writes what waits, then lets go of the device; may be called twice."""
        if not self._closing:
            self._closing = True
            self._queue.put(_Order.STOP)
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _submit(self, entries: Sequence[bytes]) -> asyncio.Future[None]:
        ask = _Ask(entries, self._loop.create_future())
        self._waiting += len(entries)
        self._queue.put(ask)
        return ask.done

    def _refused(self, reason: str) -> asyncio.Future[None]:
        refusal: asyncio.Future[None] = self._loop.create_future()
        refusal.set_exception(AuditUnavailable(reason))
        return refusal

    # in the thread ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        order = None
        while order is not _Order.STOP:
            asks, order = self._gather()
            if asks:
                self._write(asks)
            if order is _Order.REOPEN:
                self._reopen()
        self._writer.close()
        self._post(self._stopped.set_result, None)

    def _gather(self) -> tuple[list[_Ask], _Order | None]:
        """Everything that waits, up to the next order."""
        item, asks = self._queue.get(), []
        while not isinstance(item, _Order):
            asks.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return asks, None
        return asks, item

    def _write(self, asks: list[_Ask]) -> None:
        try:
            link = self._writer.append([entry for ask in asks for entry in ask.entries])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._post(self._refuse, asks, error)
        else:
            self._post(self._settle, asks, link)

    def _reopen(self) -> None:
        try:
            self._writer.reopen()
        except Exception as error:  # noqa: BLE001 - the next batch opens it again, and is refused if it can't
            self._post(self._failed, error)

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed and nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    # on the loop ------------------------------------------------------------------------------------------------------

    def _settle(self, asks: list[_Ask], link: Link) -> None:
        if self._failing:
            self._failing = False
            _log.info("the audit log can be written again")
        try:
            if link != GENESIS:
                self._confirm(link.sequence, link.mac)
        finally:
            for ask in asks:
                self._waiting -= len(ask.entries)
                if not ask.done.done():
                    ask.done.set_result(None)

    def _refuse(self, asks: list[_Ask], error: Exception) -> None:
        self._failed(error)
        for ask in asks:
            self._waiting -= len(ask.entries)
            if not ask.done.done():
                refusal = AuditUnavailable(f"the audit log can't be written ({_reason(error)}), so the request was refused")
                refusal.__cause__ = error
                ask.done.set_exception(refusal)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            _log.error("the audit log can't be written; requests are refused until it can", reason=_reason(error))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
