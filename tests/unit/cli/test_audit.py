"""`broker audit verify`: what it shows and how it exits."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from rich.console import Console

from broker.audit.chain import GENESIS, Chain, Link
from broker.audit.resume import examine
from broker.cli.audit import conclude, verify_command, verify_files
from broker.errors import ConfigError, InvalidRequest

KEY = b"k" * 32


def _log(path: Path, count: int) -> Link:
    head, lines = Chain(KEY).extend(GENESIS, [b'{"mark":%d}' % number for number in range(count)])
    path.write_bytes(lines)
    return head


def _shown(path: Path, head: Link | None, beginning: int = 1) -> tuple[int, str]:
    console = Console(width=200, record=True, quiet=False, file=(path.parent / "shown").open("w"))
    code = conclude(verify_files([path], KEY, head), beginning, console)
    console.file.close()
    return code, (path.parent / "shown").read_text()


def test_an_intact_log_exits_with_zero(tmp_path: Path) -> None:
    """Extent and verdict are shown."""
    path = tmp_path / "audit.log"
    code, text = _shown(path, _log(path, 3))
    assert code == 0
    assert [line.split() for line in text.splitlines()] == [
        ["file", "lines", "first", "last"],
        [str(path), "3", "1", "3"],
        ["intact", "up", "to", "sequence", "3"],
    ]


def test_a_broken_log_exits_with_one_and_names_the_line(tmp_path: Path) -> None:
    """File, line, sequence and what is wrong stand in one line."""
    path = tmp_path / "[bold]audit.log"
    head = _log(path, 3)
    path.write_bytes(path.read_bytes().replace(b'"mark":1', b'"mark":7'))
    code, text = _shown(path, head)
    assert code == 1
    assert f"BROKEN {path}:2 sequence 2 altered: its text does not match its MAC" in text


def test_a_log_without_its_beginning_exits_with_two(tmp_path: Path) -> None:
    """It is not passed off as whole, unless whoever asks knows that the older entries are gone."""
    path = tmp_path / "audit.log"
    head = _log(path, 3)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    code, text = _shown(path, head)
    assert code == 2
    assert "Verification starts at sequence 3" in text
    assert "BEGINS LATE at sequence 2, not 1" in text
    assert _shown(path, head, 2)[0] == 0


def test_an_exchanged_log_exits_with_two(tmp_path: Path) -> None:
    """A broker that found its whole log gone goes on in a new file; that the old one is missing shows."""
    path = tmp_path / "audit.log"
    head = _log(path, 3)
    entries = examine(io.BytesIO(b""), Chain(KEY), head).entries(0)
    head, lines = Chain(KEY).extend(head, entries)
    path.write_bytes(lines)
    assert _shown(path, head)[0] == 2
    assert _shown(path, head, 4)[0] == 0


def test_an_emptied_log_is_said_once(tmp_path: Path) -> None:
    """An empty file where there should be entries is broken."""
    path = tmp_path / "audit.log"
    head = _log(path, 3)
    path.write_bytes(b"")
    code, text = _shown(path, head)
    assert code == 1
    assert "it is empty, and the store knows of 3 entries" in text


def test_a_log_on_standard_output_has_no_file(tmp_path: Path) -> None:
    """Where it was kept only its reader knows."""
    (tmp_path / "broker.toml").write_text(f'[store]\ndirectory = "{tmp_path}"\n[audit]\ndevice = "stdout"\n')
    with pytest.raises(ConfigError, match="give the files that it was kept in"):
        verify_command(config=tmp_path / "broker.toml")


def test_an_unreadable_file_is_the_callers_mistake(tmp_path: Path) -> None:
    """The error names the file and the reason, also of one that was packed and then damaged."""
    with pytest.raises(InvalidRequest, match=r"none can't be read: No such file"):
        verify_files([tmp_path / "none"], KEY, None)
    path = tmp_path / "audit.log"
    _log(path, 3)
    (tmp_path / "empty").touch()
    packed = gzip.compress(path.read_bytes())
    for name, content in (("cut.gz", packed[:-20]), ("plain.gz", path.read_bytes()), ("bad.gz", packed[:15] + b"\xff" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidRequest, match=rf"/{name} can't be read: "):
            verify_files([tmp_path / "empty", tmp_path / name], KEY, None)
