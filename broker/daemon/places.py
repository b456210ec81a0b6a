"""The places that a start needs, checked or made in this order: directories, master key, root token."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from broker.config import Config
from broker.daemon.seams import Seams
from broker.errors import ConfigError
from broker.seal.providers import create_key_file
from broker.seal.settings import key_path, provider
from broker.secret import Secret
from broker.store.sqlite.files import sync_directory
from broker.store.sqlite.peek import exists

log = structlog.get_logger(__name__)

ROOT_TOKEN_FILE = "root-token"


def check_places(config: Config) -> None:
    """Makes the state directory; nothing else is made before both places are known to be good. Raises `ConfigError`."""
    directory, log_file = config.store.directory, config.audit.path
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError([f"store.directory: {directory} is not a directory; name one, or a place for it"]) from None
    except OSError as error:
        raise ConfigError([f"store.directory: {directory} can't be made ({error.strerror})"]) from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError([f"store.directory: {directory} can't be used (Permission denied); give it to the broker's user"])
    for path, mode in open_to_others(directory):
        log.warning("open to others; it should be the owner's alone (chmod go=)", path=str(path), mode=f"{mode:04o}")
    if config.audit.device == "file" and log_file is not None and not os.access(log_file.parent, os.W_OK | os.X_OK):
        raise ConfigError([f"audit.path: {log_file.parent} must be a directory that the broker's user may write to"])


def open_to_others(directory: Path) -> Iterator[tuple[Path, int]]:
    """The state directory and what lies in it, as far as others than its owner may touch it, with the mode. Raises `OSError`.

    A link is looked through, since its own mode says nothing: with systemd's `DynamicUser` the state directory is one.
    """
    for path in (directory, *sorted(directory.iterdir())):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # a link that leads nowhere, or a file that went meanwhile
            continue
        if stat.S_IMODE(mode) & 0o077 and not stat.S_ISSOCK(mode):
            yield path, stat.S_IMODE(mode)


def master_key(config: Config, seams: Seams) -> bytes:
    directory = config.store.directory
    if seams.key is not None:
        return seams.key.master_key()
    path = key_path(config.seal, directory)
    if config.seal.provider == "file" and not exists(directory) and not os.path.lexists(path):
        create_key_file(path)
        log.info("made a new master key; keep a copy elsewhere, without it the store can't be opened", path=str(path))
    return provider(config.seal, directory).master_key()


def root_token_keeper(path: Path) -> Callable[[Secret], None]:
    """Writes the root token once, to a 0600 file made exclusively; file and directory entry are on disc before its hash is in the store."""

    def keep(token: Secret) -> None:
        # The store has no token yet, so a file left by a start that was cut off names one that was never valid.
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token.reveal() + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
        log.warning("wrote the root token; move it to a safe place", path=str(path))

    return keep
