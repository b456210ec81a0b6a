"""The command's first moments, and what it says when it is not told enough."""

from __future__ import annotations

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
