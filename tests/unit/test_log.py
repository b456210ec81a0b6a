"""What reaches the log."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import structlog

from broker.log import Lines, LogSettings, configure
from broker.secret import Secret


@pytest.fixture(autouse=True)
def _restored() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_secrets_are_redacted_however_deep(capsys: pytest.CaptureFixture[str]) -> None:
    """A Secret, and any value under a name that usually holds one, is not written."""
    configure(LogSettings())
    structlog.get_logger().info("said", a=Secret("s3cr3t"), b={"password": "s3cr3t", "c": [Secret("s3cr3t")]}, d="open")
    (line,) = _lines(capsys)
    assert "s3cr3t" not in json.dumps(line)
    assert line["d"] == "open"


def test_tracebacks_hold_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """A revealed password in a frame that failed does not come along with its traceback."""
    configure(LogSettings())

    def fail(revealed: str) -> None:
        raise ValueError(len(revealed))

    try:
        fail("s3cr3t" * 2)
    except ValueError:
        structlog.get_logger().exception("broke")
    text = json.dumps(_lines(capsys))
    assert "ValueError" in text
    assert "s3cr3ts3cr3t" not in text


def test_libraries_log_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    """What a library logs through the standard library is one JSON object a line too, from warnings up."""
    configure(LogSettings(level="debug"))
    logging.getLogger("library").warning("watch %s", "out")
    logging.getLogger("library").info("chatter")
    (line,) = _lines(capsys)
    assert line["event"] == "watch out"


def test_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines below the configured level are not written."""
    configure(LogSettings(level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in _lines(capsys)] == ["loud"]


@pytest.mark.parametrize(("stream", "no_color", "escape"), [("terminal", "", "\x1b["), ("terminal", "1", ""), ("file", "", "")])
def test_colours_are_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stream: str, no_color: str, escape: str
) -> None:
    """A file or a pipe gets plain text, and so does whoever set NO_COLOR."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: stream == "terminal")
    monkeypatch.setenv("NO_COLOR", no_color)
    configure(LogSettings(format="console"))
    structlog.get_logger().warning("told")
    written = capsys.readouterr().err
    assert ("\x1b[" in written) == bool(escape)
    assert "told" in written


def test_terminal_obeys_no_name_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    """A role's name with an escape sequence is spelt out where a terminal reads along; a traceback keeps its lines."""
    configure(LogSettings(format="console"))
    for name in ("\x1b[2Jx", "x\x9b3m", "x\nerror forged", "\u202ex"):
        structlog.get_logger().error("differ", first=name, exc_info=ValueError("odd"))
        written = capsys.readouterr().err
        assert f"first={name!r}" in written
        assert name not in written
        assert "\nValueError: odd" in written


def test_pipe_that_nobody_empties_stops_nobody() -> None:
    """Lines are lost and counted while the pipe is full; then the log goes on at the beginning of a line, and says how many."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as pipe:
        lines = Lines(pipe)
        sent = 40
        for _ in range(sent):
            lines.write("x" * 9_999 + "\n")
        whole, _, begun = reader.read(1 << 20).rpartition(b"\n")
        lines.write('{"event": "goes on"}\n')
        rest, note, line = reader.read(1 << 20).splitlines()
        assert b"x" in begun
        assert not rest
        assert json.loads(note)["lines"] == sent - len(whole.splitlines())
        assert json.loads(line) == {"event": "goes on"}


def test_log_that_can_not_be_written_fails_nobody(tmp_path: Path) -> None:
    """A full disc, a reader that is gone and a stream that is closed cost the lines alone."""
    with Path("/dev/full").open("w") as full:
        Lines(full).write("lost\n")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        Lines(pipe).write("lost\n")
    closed = (tmp_path / "log").open("w")
    lines = Lines(closed)
    closed.close()
    lines.write("lost\n")
