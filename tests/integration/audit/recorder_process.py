"""A process that records until it is killed; says on standard output what was acknowledged and what was confirmed.

Arguments: the log, and the newest head the "store" holds (sequence and MAC in hex) or nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from broker.audit.chain import Link
from broker.audit.devices.file import FileDevice
from broker.audit.trail import Trail
from broker.clock import SystemClock

_ASKERS = 8


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


async def _ask(trail: Trail, asker: int) -> None:
    number = 0
    while True:
        mark = f"{os.getpid()}-{asker}-{number}"
        await trail.record([b'{"type":"request","mark":"%b"}' % mark.encode(), b'{"type":"response"}'])
        _say(f"acknowledged {mark}")
        number += 1


async def _main(path: str, *head: str) -> None:
    known = Link(int(head[0]), bytes.fromhex(head[1])) if head else None
    trail = await Trail.open(
        FileDevice(Path(path)),
        b"k" * 32,
        known,
        lambda sequence, mac: _say(f"confirmed {sequence} {mac.hex()}"),
        clock=SystemClock(),
    )
    await asyncio.gather(*(_ask(trail, asker) for asker in range(_ASKERS)))


asyncio.run(_main(*sys.argv[1:]))
