"""The load generator itself: carries out one order of `broker.bench.load`. Run as `python -m broker.bench.generator`."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass, field

import orjson

from broker.bench.load import TTL_FIELD, Order, decode
from broker.bench.wire import Connection, connect, get_request
from broker.clock import stopwatch_s

_OK = 200


@dataclass(slots=True)
class _Run:
    """The counters of a load and what each client does when its reply arrives."""

    order: Order
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    latencies_us: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0
    _asked: int = 0
    _busy: int = 0
    _stopped: bool = False
    _fixed: bytes = b""
    _expect: bytes = b""

    def start(self, connections: list[Connection]) -> None:
        self._expect = self.order.expect.encode()
        self._fixed = self._request(self.order.path)
        self.started_s = stopwatch_s()
        for connection in connections:
            self._busy += 1
            self._ask(connection)

    def stop(self) -> None:
        self._stopped = True

    def reply(self, connection: Connection, status: int, body: bytes) -> None:
        now_s = stopwatch_s()
        if status == _OK and self._expect in body:
            self.latencies_us.append(int((now_s - connection.sent_s) * 1e6))
            if self.order.keep:
                self.bodies.append(body)
            self._ask(connection)
        else:
            self._fail(connection, status, body)

    def _fail(self, connection: Connection, status: int, body: bytes) -> None:
        self.errors += 1
        self.first_error = self.first_error or _described(status, body, self.order.expect)
        # A connection that failed asks no more: a server that refuses fast would drown the rest.
        connection.close()
        self._rest()

    def _ask(self, connection: Connection) -> None:
        order = self.order
        over = (
            self._stopped
            or stopwatch_s() - self.started_s >= order.seconds
            or (order.requests and self._asked >= order.requests)
        )
        if over:
            self._rest()
            return
        self._asked += 1
        connection.send(self._fixed if not order.due_in_s else self._request(self._path_now()))

    def _rest(self) -> None:
        self._busy -= 1
        if not self._busy:
            self.ended_s = stopwatch_s()
            self.finished.set()

    def _path_now(self) -> str:
        left_s = self.started_s + self.order.due_in_s - stopwatch_s()
        return self.order.path.replace(TTL_FIELD, str(max(1, math.ceil(left_s))))

    def _request(self, path: str) -> bytes:
        return get_request(self.order.host, path, self.order.token.reveal())

    def as_json(self) -> bytes:
        return orjson.dumps(
            {
                "done": len(self.latencies_us),
                "seconds": self.ended_s - self.started_s,
                "latencies_us": sorted(self.latencies_us),
                "errors": self.errors,
                "first_error": self.first_error,
                "kept": [_fields(body, self.order.keep) for body in self.bodies],
            }
        )


def _described(status: int, body: bytes, expect: str) -> str:
    """What went wrong, without what a good reply holds: that is a password."""
    if status == _OK:
        return f"a reply without {expect!r}"
    return f"HTTP {status}: {body[:200].decode(errors='replace')}" if status else body.decode(errors="replace")


def _fields(body: bytes, names: tuple[str, ...]) -> list[str]:
    reply = orjson.loads(body)
    return [str(reply["lease_id"] if name == "lease_id" else reply["data"][name]) for name in names]


async def _serve_order() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = decode(await reader.readline())
    run = _Run(order)
    _say(b"true")
    await reader.readline()
    # Not before `go`: the server closes a connection that waits too long.
    connections = [await connect(order.host, order.port, run.reply) for _ in range(order.clients)]
    run.start(connections)
    stopper = asyncio.create_task(_stop_when_told(reader, run))
    await run.finished.wait()
    stopper.cancel()
    for connection in connections:
        connection.close()
    _say(run.as_json())


async def _stop_when_told(reader: asyncio.StreamReader, run: _Run) -> None:
    await reader.readline()
    run.stop()


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Carries out one order, on uvloop where it is present."""
    try:
        import uvloop  # noqa: PLC0415 - a platform may lack it
    except ImportError:
        asyncio.run(_serve_order())
    else:
        uvloop.run(_serve_order())


if __name__ == "__main__":
    main()
