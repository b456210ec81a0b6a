"""What the bench asks the operating system: a free port, the memory of a process, and its end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

_PATIENCE_S = 30.0


def free_port() -> int:
    """A TCP port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_mb(pid: int) -> float:
    """Resident memory of a process in megabytes (proc(5), `VmRSS`)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def stop(process: asyncio.subprocess.Process) -> int:
    """Asks a process to end with SIGTERM, kills it when it has not within 30 s; answers its exit code."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE_S)
        except TimeoutError:
            process.kill()
    return await process.wait()
