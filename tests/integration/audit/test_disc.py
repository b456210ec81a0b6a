"""The trail on a real file: a disc that fills up, and rotation under load."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from broker.audit.chain import Link
from broker.audit.devices.file import FileDevice
from broker.audit.trail import Trail
from broker.audit.verify import verify
from broker.clock import SystemClock
from broker.errors import AuditUnavailable

KEY = b"k" * 32
_PAGE = 4096


class Quota:
    """A limit on the size of files (setrlimit(2)): a write beyond it is cut short, the next fails with EFBIG."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        sizes = [path.stat().st_size for path in self.directory.iterdir()]
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + 1000, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class SmallDisc:
    """A tmpfs of 64 kB that another file fills up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    def fill(self) -> None:
        fd = os.open(self._ballast, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(fd, bytes(_PAGE))
        except OSError:
            os.close(fd)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture(params=["file size limit", "small disc"])
def scarce(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Quota | SmallDisc]:
    """Space that ends; the small disc where this user may mount one, else the limit stands in for it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if request.param == "small disc" and os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:  # noqa: PLW1510
        yield SmallDisc(tmp_path)
        subprocess.run(["umount", tmp_path], check=True)
    else:
        quota = Quota(tmp_path)
        yield quota
        quota.free()


def _entry(mark: object) -> bytes:
    return b'{"type":"request","mark":"%b","fill":"%b"}' % (str(mark).encode(), b"x" * 300)


async def test_a_full_disc_refuses_and_leaves_no_torn_line(scarce: Quota | SmallDisc) -> None:
    """While the disc is full entries are refused and the log stays whole; with space it goes on by itself."""
    log = scarce.directory / "audit.log"
    heads: list[Link] = []
    trail = await Trail.open(FileDevice(log), KEY, None, lambda *link: heads.append(Link(*link)), clock=SystemClock())
    await trail.record([_entry("before")])
    scarce.fill()
    refused = 0
    for attempt in range(20):
        try:
            await asyncio.gather(*(trail.record([_entry(f"{attempt}-{one}")] * 20) for one in range(3)))
        except AuditUnavailable:
            refused += 1
            assert log.read_bytes().endswith(b"}}\n")
    scarce.free()
    await trail.record([_entry("after")])
    await trail.close()
    assert refused == 20
    report = verify([log], KEY, heads[-1])
    assert report.intact
    assert [orjson.loads(line)["mark"] for line in log.read_bytes().splitlines()] == ["before", "after"]


async def test_rotation_under_load_loses_nothing(tmp_path: Path) -> None:
    """Renamed and reopened five times while many record: each entry once, files chained to one another."""
    log = tmp_path / "audit.log"
    heads: list[Link] = []
    trail = await Trail.open(FileDevice(log), KEY, None, lambda *link: heads.append(Link(*link)), clock=SystemClock())

    async def ask(asker: int) -> None:
        for number in range(100):
            await trail.record([_entry(f"{asker}-{number}")])

    async def rotate() -> list[Path]:
        moved = []
        for number in range(5):
            await trail.record([_entry(f"rotate-{number}")])
            moved.append(log.rename(tmp_path / f"audit.log.{number}"))
            trail.reopen()
            await trail.record([_entry(f"rotated-{number}")])
        return moved

    *_, moved = await asyncio.gather(*(ask(asker) for asker in range(8)), rotate())
    await trail.close()
    files = [*moved, log]
    report = verify(files, KEY, heads[-1])
    assert report.flaw is None
    assert report.remarks == []
    entries = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    marks = [entry["mark"] for entry in entries if entry["type"] == "request"]
    assert len(marks) == len(set(marks)) == 8 * 100 + 10
    assert sum(entry["type"] == "rotation" for entry in entries) == 5


async def test_a_deleted_log_is_made_anew(tmp_path: Path) -> None:
    """Entries do not vanish into a file that nobody can find any more; the new one says what it follows."""
    log = tmp_path / "audit.log"
    trail = await Trail.open(FileDevice(log), KEY, None, lambda *_: None, clock=SystemClock())
    await trail.record([_entry("lost")])
    log.unlink()
    await trail.record([_entry("kept")])
    await trail.close()
    assert [orjson.loads(line)["type"] for line in log.read_bytes().splitlines()] == ["rotation", "request"]
    report = verify([log], KEY)
    assert (report.intact, report.starts_at) == (True, 2)
