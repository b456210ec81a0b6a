"""Asking for leases at full speed, by a process of its own, so that measuring takes no time from what is measured.

`broker.bench.generator` is that process. The parent writes an order as one line of JSON to its standard input (the token is
in it, so it is in no process list), reads a line once the process is up, writes `go`, may write `stop`, and reads the
result as one line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from broker.bench.figures import Figure
from broker.errors import Unavailable
from broker.secret import Secret

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
    """A load whose process is up and waits for `go`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def go(self) -> None:
        """Opens the connections and starts asking; its clock starts when they are open."""
        self._tell(b"go\n")

    def stop(self) -> None:
        """Asks no more; what is under way is waited for."""
        self._tell(b"stop\n")

    async def result(self) -> LoadResult:
        """Waits for the end. Raises `Unavailable` when the generator died."""
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
            raise Unavailable("the load generator ended without a result")
        return orjson.loads(text)

    def _tell(self, word: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(word)


@asynccontextmanager
async def open_load(order: Order) -> AsyncIterator[Load]:
    """A load that waits for `go`; ended on the way out."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.bench.generator"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
    )
    load = Load(process)
    try:
        if process.stdin is not None:
            process.stdin.write(encode(order) + b"\n")
        await load._line()  # noqa: SLF001 - the handshake is this module's own
        yield load
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure(order: Order) -> LoadResult:
    """Runs a load from start to end."""
    async with open_load(order) as load:
        load.go()
        return await load.result()


def encode(order: Order) -> bytes:
    """An order as the line of JSON that its generator reads."""
    plain = {name: getattr(order, name) for name in Order.__dataclass_fields__ if name != "token"}
    return orjson.dumps({**plain, "token": order.token.reveal()})


def decode(line: bytes) -> Order:
    """The order in such a line."""
    plain = orjson.loads(line)
    return Order(**{**plain, "token": Secret(plain["token"]), "keep": tuple(plain["keep"])})
