"""Key providers: the key or a sentence that says what to do, never a part of the key."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import KeyUnusable
from broker.seal.providers import CredentialKey, EnvironmentKey, FileKey, KeyProvider, MemoryKey, create_key_file
from broker.seal.providers.text import key_from_text, new_key_text

KEY = bytes(range(32))
BASE64 = base64.b64encode(KEY).decode()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "master.key"
    path.write_text(BASE64 + "\n")
    path.chmod(0o600)
    return path


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["", "\n", " \r\n"]))
def test_any_key_is_read_in_both_forms(key: bytes, ending: str) -> None:
    """32 bytes come back from base64 and from hexadecimal, whatever white space follows."""
    for text in (base64.b64encode(key).decode(), key.hex(), key.hex().upper()):
        assert key_from_text(text + ending, "it") == key


@given(st.text())
def test_anything_else_is_refused_by_name(text: str) -> None:
    """What is no key is refused, and the error holds nothing of it."""
    with pytest.raises(KeyUnusable) as refusal:
        key_from_text(text, "the origin")
    with pytest.raises(KeyUnusable) as other:
        key_from_text("another text", "the origin")
    assert str(refusal.value) == str(other.value)


@pytest.mark.parametrize("text", ["", BASE64[:-4], BASE64 + "AAAA", KEY.hex()[:-2], KEY.hex() + "00", "ü" * 44, "\x00" * 32])
def test_near_misses_are_refused(text: str) -> None:
    """A key that is too short, too long or of other characters."""
    with pytest.raises(KeyUnusable, match="32 random bytes"):
        key_from_text(text, "it")


def test_new_keys_are_random_and_readable() -> None:
    """What is made can be read, and is never the same."""
    assert len({key_from_text(new_key_text(), "it") for _ in range(10)}) == 10


def test_key_file_is_read(key_file: Path) -> None:
    """A private file with a key in it."""
    provider: KeyProvider = FileKey(key_file)
    assert provider.master_key() == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o777])
def test_key_file_open_to_others_is_refused(key_file: Path, mode: int) -> None:
    """Any right of group or world makes it unusable; the text says how to mend it."""
    key_file.chmod(mode)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        FileKey(key_file).master_key()


def test_key_file_may_be_read_only(key_file: Path) -> None:
    """Mode 0400 is as private as 0600."""
    key_file.chmod(0o400)
    assert FileKey(key_file).master_key() == KEY


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A directory or a FIFO is refused at once, without waiting for a writer."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo):
        with pytest.raises(KeyUnusable):
            FileKey(path).master_key()


def test_missing_key_file_is_named(tmp_path: Path) -> None:
    """The path is in the text."""
    with pytest.raises(KeyUnusable, match=r"nowhere\.key"):
        FileKey(tmp_path / "nowhere.key").master_key()


def test_large_file_is_not_read_whole(tmp_path: Path) -> None:
    """A wrong path to something huge costs nothing."""
    path = tmp_path / "huge"
    path.touch(mode=0o600)
    os.truncate(path, 1 << 40)
    with pytest.raises(KeyUnusable):
        FileKey(path).master_key()


def test_created_key_file_is_private_and_usable(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, and a key inside."""
    path = tmp_path / "new.key"
    script = "import os, sys, pathlib; from broker.seal.providers import create_key_file; os.umask(int(sys.argv[2], 8)); "
    script += "create_key_file(pathlib.Path(sys.argv[1]))"
    for umask in ("000", "0777"):
        subprocess.run([sys.executable, "-c", script, str(path), umask], check=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(FileKey(path).master_key()) == 32
        path.unlink()


def test_existing_key_file_is_never_overwritten(key_file: Path, tmp_path: Path) -> None:
    """Neither a file nor a link to somewhere is replaced."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    for path in (key_file, link):
        with pytest.raises(KeyUnusable):
            create_key_file(path)
    assert key_file.read_text() == BASE64 + "\n"
    assert not (tmp_path / "elsewhere").exists()


def test_key_file_in_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """The text says what failed."""
    with pytest.raises(KeyUnusable, match="can't be made"):
        create_key_file(tmp_path / "no" / "such.key")


def test_environment_key_is_removed_once_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is started later inherits it, be it right or wrong."""
    monkeypatch.setenv("BROKER_KEY", KEY.hex())
    assert EnvironmentKey("BROKER_KEY").master_key() == KEY
    assert "BROKER_KEY" not in os.environ
    monkeypatch.setenv("BROKER_KEY", "wrong")
    with pytest.raises(KeyUnusable):
        EnvironmentKey("BROKER_KEY").master_key()
    assert "BROKER_KEY" not in os.environ


def test_unset_environment_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable's name is in the text."""
    monkeypatch.delenv("BROKER_KEY", raising=False)
    with pytest.raises(KeyUnusable, match="BROKER_KEY is not set"):
        EnvironmentKey("BROKER_KEY").master_key()


def test_systemd_credential_is_read(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the directory that systemd names."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))
    assert CredentialKey("master.key").master_key() == KEY


@pytest.mark.parametrize("name", ["missing", "../master.key", "a/b", "..", ""])
def test_unusable_credential_is_named(key_file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A missing credential, and a name that would leave the directory."""
    directory = key_file.parent / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    with pytest.raises(KeyUnusable, match="systemd credential"):
        CredentialKey(name).master_key()


def test_credential_outside_systemd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the directory there is no credential."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(KeyUnusable, match="LoadCredential"):
        CredentialKey("master").master_key()


def test_memory_key_is_the_same_for_one_process_only() -> None:
    """One object gives one key; the next another."""
    key = MemoryKey()
    assert key.master_key() == key.master_key()
    assert MemoryKey().master_key() != key.master_key()
