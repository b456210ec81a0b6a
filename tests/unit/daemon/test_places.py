"""The places that a start needs: a mistake names its key, and nothing is made before both are good."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.config import parse
from broker.daemon.places import check_places, master_key
from broker.daemon.seams import Seams
from broker.errors import ConfigError, KeyUnusable


def _refused(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        check_places(parse(content))
    (line,) = error.value.mistakes
    return line


def test_a_state_directory_is_made_private(tmp_path: Path) -> None:
    """With the directories above it, closed to others."""
    check_places(parse({"store": {"directory": str(tmp_path / "a" / "state")}}))
    assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_in_the_way_of_the_state_directory_is_named(tmp_path: Path, place: str) -> None:
    """The directory is a file, or below one."""
    (tmp_path / "taken").touch()
    assert _refused({"store": {"directory": str(tmp_path / place)}}).startswith(f"store.directory: {tmp_path / place} ")


@pytest.mark.parametrize("denied", ["store.directory", "audit.path"])
def test_a_place_of_somebody_elses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    """A directory that this user may not write to is a mistake of its key."""
    state, logs = tmp_path / "state", tmp_path / "logs"
    state.mkdir()
    logs.mkdir()
    foreign = {"store.directory": state, "audit.path": logs}[denied]
    monkeypatch.setattr(os, "access", lambda path, mode: path != foreign)
    line = _refused({"store": {"directory": str(state)}, "audit": {"path": str(logs / "audit.log")}})
    assert line.startswith(f"{denied}: {foreign} ")


def test_a_missing_audit_directory_is_found_before_a_key_is_made(tmp_path: Path) -> None:
    """The state directory is still empty then, so the next start is a first one."""
    content = {"store": {"directory": str(tmp_path / "state")}, "audit": {"path": str(tmp_path / "none" / "audit.log")}}
    assert _refused(content).startswith("audit.path: ")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_lost_key_is_not_made_anew(tmp_path: Path) -> None:
    """Where there is a store, its key has to come back."""
    (tmp_path / "store.db").touch()
    with pytest.raises(KeyUnusable, match="put back its copy"):
        master_key(parse({"store": {"directory": str(tmp_path)}}), Seams())
    assert not (tmp_path / "master.key").exists()


def test_a_state_directory_that_is_open_to_others_is_told(tmp_path: Path) -> None:
    """At every start, with each file and its mode: whoever can touch it is not only its owner."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "broker.db").touch(mode=0o600)
    config = parse({"store": {"directory": str(directory)}})
    with capture_logs() as told:
        check_places(config)
    assert told == []
    (directory / "broker.db").chmod(0o640)
    directory.chmod(0o755)
    with capture_logs() as told:
        check_places(config)
    assert [(line["path"], line["mode"]) for line in told] == [(str(directory), "0755"), (str(directory / "broker.db"), "0640")]


def test_links_are_looked_through(tmp_path: Path) -> None:
    """As with systemd's `DynamicUser`, whose state directory is a link: what it leads to counts, not its own mode, which is always 0777."""
    directory, link = tmp_path / "private", tmp_path / "state"
    directory.mkdir(mode=0o700)
    link.symlink_to(directory)
    (tmp_path / "key").touch(mode=0o600)
    (directory / "master.key").symlink_to(tmp_path / "key")
    (directory / "nowhere").symlink_to(tmp_path / "none")
    config = parse({"store": {"directory": str(link)}})
    with capture_logs() as told:
        check_places(config)
    assert told == []
    (tmp_path / "key").chmod(0o644)
    directory.chmod(0o750)
    with capture_logs() as told:
        check_places(config)
    assert [(line["path"], line["mode"]) for line in told] == [(str(link), "0750"), (str(link / "master.key"), "0644")]
