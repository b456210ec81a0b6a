"""What a terminal is shown of names that others made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from broker.audit.verify import Report
from broker.cli import audit, command, connection, doctor, reconcile
from broker.errors import BrokerError, ConfigError, InvalidRequest
from broker.printable import printable

HOSTILE = "\x1b]0;owned\x07\x1b[2Jx\ny\x9b3m\u202ez"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jx\ny\x9b3m\u202ez"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("v-app [bold]é漢🔑", "v-app [bold]é漢🔑"), (HOSTILE, SHOWN), ("\ud800", r"\ud800"), ("a\tb\r\n", r"a\tb\r\n")],
)
def test_only_what_prints_is_left_as_it_is(text: str, shown: str) -> None:
    """Escape sequences of both kinds, line ends, marks that turn the writing round and halves of characters are spelt out."""
    assert printable(text) == shown
    assert printable(text).isprintable()


def console() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, soft_wrap=True, width=400), written


def test_comparison_prints_no_escape_sequence() -> None:
    """Whatever a report holds: names of users, sentences of the engine, errors of the database."""
    report: dict[str, Any] = {
        "connection": "pg",
        "users": 1,
        "leases": 1,
        "left_out": 1,
        "sessions_ended": 1,
        "sessions_left": 1,
        "found": {"forged_marker": 1},
        "amended": {},
        "differences": [{"kind": "forged_marker", "username": HOSTILE, "lease_id": ""}],
        "concerns": [f"table {HOSTILE} is full"],
        "error": f"no such role {HOSTILE}",
    }
    shown, written = console()
    reconcile._show({"connections": [report]}, shown)
    assert f"  forged_marker  {SHOWN}\n" in written.getvalue()
    assert written.getvalue().count(SHOWN) == 3
    assert written.getvalue().replace("\n", "").isprintable()


def test_check_prints_no_escape_sequence() -> None:
    """Groups that are missing, what the database said, and what to run."""
    step = {"step": "made", "milliseconds": 1.0, "ok": False, "error": f"role {HOSTILE}", "remedy": [f'DROP ROLE "{HOSTILE}"']}
    lack = {"need": f"grant {HOSTILE}", "reason": f"denied {HOSTILE}", "fatal": False, "remedy": f'GRANT "{HOSTILE}"'}
    shown, written = console()
    connection.show({"connection": "pg", "ok": False, "steps": [step], "missing": [lack]}, shown)
    assert written.getvalue().count(SHOWN) == 5
    assert written.getvalue().replace("\n", "").isprintable()


def test_verification_of_the_log_prints_no_escape_sequence() -> None:
    """Lines of a log that somebody wrote into are quoted."""
    shown, written = console()
    audit.conclude(Report(remarks=[f"audit.log:1 {HOSTILE}"]), 1, shown)
    assert f"audit.log:1 {SHOWN}\n" in written.getvalue()


def test_doctor_prints_no_escape_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a database answered stands in a line."""

    def found() -> Iterator[doctor.Finding]:
        yield doctor.Finding(doctor.Verdict.BAD, "connection pg", f"no role {HOSTILE}")

    monkeypatch.setattr(doctor, "versions", found)
    with pytest.raises(typer.Exit):
        doctor.doctor(config=tmp_path / "none.toml")
    assert f"no role {SHOWN}\n" in capsys.readouterr().out


@pytest.mark.parametrize("error", [InvalidRequest(f"no role {HOSTILE}"), ConfigError([f"no role {HOSTILE}"])])
def test_errors_print_no_escape_sequence(
    error: BrokerError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, whatever a broker or a database said."""

    def app() -> None:
        raise error

    monkeypatch.setattr(command, "app", app)
    with pytest.raises(SystemExit):
        command.run()
    assert capsys.readouterr().err == f"broker: no role {SHOWN}\n"
