"""The master key in an environment variable."""

from __future__ import annotations

import os

from broker.errors import KeyUnusable
from broker.seal.providers.text import key_from_text


class EnvironmentKey:
    """Reads the key from the variable `name` and removes it, so that no process started later inherits it.

    The kernel keeps the first environment in /proc/<pid>/environ, which the same user and root can read: a file or a
    systemd credential is better where there is one.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def master_key(self) -> bytes:
        """See `KeyProvider.master_key`. A second call finds nothing."""
        text = os.environ.pop(self._name, None)
        if text is None:
            raise KeyUnusable(f"the environment variable {self._name} is not set: set it to the master key")
        return key_from_text(text, f"the environment variable {self._name}")
