"""The load generator: a process of its own, so that measuring takes no time from what does the asking.

The parent writes an order as one line of JSON to its standard input (the token is in it, so it is in no process list), reads
`ready` once every connection is open, writes `go`, may write `stop`, and reads the result as one line of JSON.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from broker.bench.figures import Figure
from broker.bench.wire import Connection, connect, get_request
from broker.clock import stopwatch_s
from broker.secret import Secret

_OK = 200
_NO_MORE_THAN_S = 600.0
TTL_FIELD = "{ttl}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to ask for, by how many clients at once, and when to stop: after `seconds` or `requests`, or when told."""

    host: str
    port: int
    token: Secret
    path: str
    """May hold `{ttl}`: the whole seconds left until `due_in_s` after the start, at least 1."""
    clients: int
    seconds: float = _NO_MORE_THAN_S
    requests: int = 0
    """0: no limit."""
    due_in_s: float = 0.0
    expect: str = ""
    """Text that each reply must hold; one without it is an error."""
    keep: tuple[str, ...] = ()
    """Fields of the reply to hand back: `lease_id` or names within `data`."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load came to, and the fields that the order wanted kept, one row for each reply."""

    figure: Figure
    kept: list[list[str]]


class Load:
    """A started load: its connections are open, it waits for `go`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def go(self) -> None:
        """Starts asking."""
        self._tell(b"go\n")

    def stop(self) -> None:
        """Asks no more; what is under way is waited for."""
        self._tell(b"stop\n")

    async def result(self) -> LoadResult:
        """Waits for the end. Raises `RuntimeError` when the generator died."""
        line = await self._line()
        return LoadResult(
            Figure(
                done=line["done"],
                seconds=line["seconds"],
                latencies_us=tuple(line["latencies_us"]),
                errors=line["errors"],
                first_error=line["first_error"],
            ),
            line["kept"],
        )

    async def _line(self) -> Any:
        stream = self._process.stdout
        text = await stream.readline() if stream is not None else b""
        if not text:
            raise RuntimeError("the load generator ended without a result")
        return orjson.loads(text)

    def _tell(self, word: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(word)


@asynccontextmanager
async def prepared_load(order: Order) -> AsyncIterator[Load]:
    """A load whose process and connections are up; ended on the way out."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
    )
    load = Load(process)
    try:
        if process.stdin is not None:
            process.stdin.write(_encode(order) + b"\n")
        await load._line()  # noqa: SLF001 - the handshake is this module's own
        yield load
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(order: Order) -> LoadResult:
    """Runs a load from start to end."""
    async with prepared_load(order) as load:
        load.go()
        return await load.result()


# --- inside the process -------------------------------------------------------------------------------------------


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


def _encode(order: Order) -> bytes:
    plain = {name: getattr(order, name) for name in Order.__dataclass_fields__ if name != "token"}
    return orjson.dumps({**plain, "token": order.token.reveal()})


def _decode(line: bytes) -> Order:
    plain = orjson.loads(line)
    return Order(**{**plain, "token": Secret(plain["token"]), "keep": tuple(plain["keep"])})


async def _serve_order() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = _decode(await reader.readline())
    run = _Run(order)
    connections = [await connect(order.host, order.port, run.reply) for _ in range(order.clients)]
    _say(b"true")
    await reader.readline()
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
