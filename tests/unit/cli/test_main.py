"""The command's first moments, and what it says when it is not told enough."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from broker.cli import serve
from broker.cli.doctor import plugins
from broker.cli.main import main
from broker.errors import ConfigError


class _Interrupted:
    """Ctrl-C while the command's modules are being imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "broker.cli.command":
            raise KeyboardInterrupt


def test_ctrl_c_during_the_imports_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and the exit status of a process that was interrupted."""
    monkeypatch.delitem(sys.modules, "broker.cli.command", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_closed_standard_files_go_to_nobody_else() -> None:
    """A file that is opened later does not get the number of one that was closed, and what was closed can't be written."""
    script = (
        "import os, sys; from broker.cli.main import main; os.close(0); os.close(1); sys.argv[1:] = ['--version']; sys.stdout = None\n"
        "try: main()\n"
        "finally:\n"
        "    after = os.open(os.devnull, os.O_RDONLY)\n"
        "    try: written = os.write(1, b'x')\n"
        "    except OSError as error: written = error.strerror\n"
        "    print(after, os.read(0, 1), written, sys.stdout.name, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "4 b'' Bad file descriptor /dev/null" in done.stderr


def test_without_a_configuration_a_way_on_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fresh machine, every command that needs one says what to give it."""
    monkeypatch.setattr(serve, "DEFAULT_CONFIG", tmp_path / "broker.toml")
    with pytest.raises(ConfigError, match="give --config FILE, or try broker serve --dev"):
        serve.chosen(None)
    (tmp_path / "broker.toml").touch()
    assert serve.chosen(None) == tmp_path / "broker.toml"


def test_doctor_honours_the_allowed_distributions() -> None:
    """A plugin of a distribution that is not allowed is not called good."""
    assert [finding.verdict for finding in plugins()] == ["ok"]
    assert [finding.verdict for finding in plugins(["another"])] == ["bad"]
