"""A broker that is killed while it records."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import orjson

from broker.audit.chain import Link
from broker.audit.devices.file import FileDevice
from broker.audit.resume import Finding
from broker.audit.trail import Trail
from broker.audit.verify import verify
from broker.clock import SystemClock

KEY = b"k" * 32
RECORDER = Path(__file__).with_name("recorder_process.py")


class Run:
    """One life of the recorder: what it said before SIGKILL ended it."""

    def __init__(self, log: Path, head: Link | None, lines: int) -> None:
        known = [] if head is None else [str(head.sequence), head.mac.hex()]
        with subprocess.Popen([sys.executable, RECORDER, log, *known], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = list(islice(process.stdout, lines))
            process.kill()
            said += process.stdout.readlines()
        words = [line.decode().split() for line in said if line.endswith(b"\n")]
        self.acknowledged = {word[1] for word in words if word[0] == "acknowledged"}
        self.heads = [Link(int(word[1]), bytes.fromhex(word[2])) for word in words if word[0] == "confirmed"]


def _marks(log: Path) -> set[str]:
    return {orjson.loads(line).get("mark") for line in log.read_bytes().splitlines() if line.endswith(b"}}")}


async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """Killed again and again, with torn lines and an old head: no acknowledged entry is missing, and the chain verifies."""
    log = tmp_path / "audit.log"
    head: Link | None = None
    acknowledged: set[str] = set()
    for life in range(6):
        run = Run(log, head, 40 + 25 * life)
        acknowledged |= run.acknowledged
        # The store's head may be any that was confirmed; here it lags behind by half a life.
        head = run.heads[len(run.heads) // 2]
        if life % 2:
            with log.open("ab") as stream:
                stream.write(b'{"type":"request","mark":"to')
    assert len(acknowledged) > 200

    confirmed: list[Link] = []
    trail = await Trail.open(FileDevice(log), KEY, head, lambda *link: confirmed.append(Link(*link)), clock=SystemClock())
    await trail.close()

    assert trail.resumption.finding is Finding.TORN
    assert acknowledged <= _marks(log)
    report = verify([log], KEY, confirmed[-1])
    assert report.flaw is None
    assert len(report.remarks) == 3
