"""The file device: safe to open, whole in what it writes, and able to take back."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.audit.devices.file import FileDevice


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def opened(path: Path) -> Iterator[FileDevice]:
    device = FileDevice(path)
    device.open()
    yield device
    device.close()


def test_a_new_file_is_for_its_owner_alone(opened: FileDevice, path: Path) -> None:
    """Nobody else reads who got which user."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_file_is_durable_in_its_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is synchronised when the file is made, and not when it was there."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    for expected in ([True], [True]):
        device = FileDevice(path)
        device.open()
        device.close()
        assert synced == expected


def test_writes_are_appended_and_read_back(opened: FileDevice, path: Path) -> None:
    """The reader sees everything, and reading does not move where the next write goes."""
    opened.write(b"one\n")
    opened.flush()
    with opened.reader() as reader:
        assert reader.read(2) == b"on"
    opened.write(b"two\n")
    with opened.reader() as reader:
        reader.seek(0)
        assert reader.read() == b"one\ntwo\n"
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_flush_is_fdatasync(opened: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durable means asked of the kernel, on this very file."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    opened.write(b"one\n")
    assert synced == []
    opened.flush()
    assert synced == [4]


def test_short_writes_are_completed(opened: FileDevice, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it was given; the rest follows in order."""
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:3]))
    opened.write(b"0123456789\n")
    assert path.read_bytes() == b"0123456789\n"


def test_a_write_that_takes_nothing_is_an_error(opened: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """No endless loop on a file that neither grows nor fails."""
    monkeypatch.setattr(os, "write", lambda _fd, _data: 0)
    with pytest.raises(OSError, match="takes no more"):
        opened.write(b"x")


def test_only_what_was_not_flushed_is_taken_back(opened: FileDevice, path: Path) -> None:
    """The file ends again where the last flush left it, and goes on from there."""
    opened.write(b"kept\n")
    opened.flush()
    opened.write(b"taken ")
    opened.write(b"back")
    opened.take_back()
    opened.write(b"next\n")
    assert path.read_bytes() == b"kept\nnext\n"


def test_taking_back_never_grows_a_file(opened: FileDevice, path: Path) -> None:
    """A file that somebody truncated meanwhile is not filled with zeros."""
    opened.write(b"kept\n")
    opened.flush()
    os.truncate(path, 2)
    opened.take_back()
    assert path.read_bytes() == b"ke"


def test_a_deleted_file_is_stale(opened: FileDevice, path: Path) -> None:
    """Lines must not go to a file that nobody will find."""
    assert not opened.stale()
    path.unlink()
    assert opened.stale()


def test_a_touched_file_is_stale_and_a_renamed_one_is_not(opened: FileDevice, path: Path) -> None:
    """Somebody else's bytes, or missing ones, ask for a look; a rename waits for the signal."""
    opened.write(b"line\n")
    opened.flush()
    path.rename(path.with_suffix(".1"))
    assert not opened.stale()
    with path.with_suffix(".1").open("ab") as other:
        other.write(b"?")
    assert opened.stale()


@pytest.mark.parametrize("size", [0, 30], ids=["emptied", "longer"])
def test_a_file_touched_between_write_and_flush_is_stale(opened: FileDevice, path: Path, size: int) -> None:
    """What somebody does to it while a batch is on its way does not pass for a part of that batch."""
    opened.write(b"line\n")
    os.truncate(path, size)
    opened.flush()
    assert opened.stale()


def test_a_symlink_is_refused(path: Path, tmp_path: Path) -> None:
    """Who can place a link must not choose what the broker appends to."""
    (tmp_path / "target").touch(0o600)
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        FileDevice(path).open()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path: Path, mode: int) -> None:
    """The error says what to run."""
    path.touch()
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod go-w"):
        FileDevice(path).open()


def test_what_is_no_file_is_refused(path: Path) -> None:
    """A pipe has no tail to take back."""
    os.mkfifo(path, 0o600)
    with pytest.raises(OSError, match="not a regular file"):
        FileDevice(path).open()


def test_two_writers_are_refused(opened: FileDevice, path: Path) -> None:
    """A second broker on the same log would break the chain; after the first has closed, it may."""
    second = FileDevice(path)
    with pytest.raises(OSError, match="another process is writing it"):
        second.open()
    opened.close()
    second.open()
    second.close()


def test_closing_twice_does_nothing(opened: FileDevice) -> None:
    """The second time there is nothing to let go of."""
    opened.close()
    opened.close()
