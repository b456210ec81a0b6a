"""The master key as a systemd credential (systemd.exec(5), "Credentials")."""

from __future__ import annotations

import os
from pathlib import Path

from broker.errors import KeyUnusable
from broker.seal.providers.text import MOST_CHARS, key_from_text


class CredentialKey:
    """Reads the key from `$CREDENTIALS_DIRECTORY/<name>`, which systemd shows to the unit's processes alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def master_key(self) -> bytes:
        """See `KeyProvider.master_key`."""
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise KeyUnusable(
                f"there is no systemd credential {self._name}: run as a unit with LoadCredential= or LoadCredentialEncrypted="
            )
        if Path(self._name).name != self._name:
            raise KeyUnusable(f"{self._name!r} is not the name of a systemd credential: it must be a plain file name")
        try:
            with (Path(directory) / self._name).open("rb") as file:
                text = file.read(MOST_CHARS + 1).decode("ascii", "replace")
        except OSError as failure:
            raise KeyUnusable(
                f"the systemd credential {self._name} can't be read ({failure.strerror}): name it in LoadCredential="
            ) from failure
        return key_from_text(text, f"the systemd credential {self._name}")
