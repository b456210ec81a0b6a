"""The broker of the demo: the real daemon in this process, its key in memory, its state in a temporary directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.audit.verify import Report, verify
from broker.config import Config
from broker.daemon import Daemon, Seams, start
from broker.demo.caller import DemoFailed
from broker.seal.keyring import Purpose
from broker.seal.providers import MemoryKey
from broker.secret import Secret
from broker.server.settings import ServerSettings
from broker.store.protocol import Store
from broker.store.settings import StoreSettings
from broker.store.sqlite.store import SqliteStore


class RunningBroker:
    """`start` it once, and in the end `stop` it; what it kept is removed then."""

    def __init__(self) -> None:
        self._directory = TemporaryDirectory(prefix="broker-demo-")
        self._daemon: Daemon | None = None
        self._audit_key = b""
        self.root_token = Secret("")

    async def start(self) -> None:
        """On return it answers, on a free port of loopback."""
        config = Config(
            server=ServerSettings(address="127.0.0.1:0"), store=StoreSettings(directory=Path(self._directory.name) / "state")
        )
        self._daemon = await start(
            config, Seams(key=MemoryKey(), store=self._take_audit_key, keep_root_token=self._take_root_token)
        )

    async def stop(self) -> None:
        """Ends it and removes its files; also when it never started."""
        try:
            if self._daemon is not None:
                await self._daemon.stop()
        finally:
            self._directory.cleanup()

    @property
    def address(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8200`."""
        return self._started().address

    @property
    def audit_file(self) -> Path:
        """Its audit log."""
        return self._started().config.store.directory / "audit.log"

    def write_token_header(self) -> Path:
        """Writes the root token down as a header that `curl -H @FILE` sends: an argument would be there for every user to read."""
        file = Path(self._directory.name) / "token-header"
        file.touch(mode=0o600)
        file.write_text(f"X-Vault-Token: {self.root_token.reveal()}\n", encoding="ascii")
        return file

    async def verify_audit(self) -> Report:
        """Follows the audit log's chain up to the newest entry that the store knows of."""
        head = await self._started().store.audit_head()
        return await asyncio.to_thread(verify, [self.audit_file], self._audit_key, head)

    def _started(self) -> Daemon:
        if self._daemon is None:
            raise DemoFailed("the broker was not started")
        return self._daemon

    def _take_root_token(self, token: Secret) -> None:
        self.root_token = token

    def _take_audit_key(self, store: Store) -> Store:
        if isinstance(store, SqliteStore):
            self._audit_key = store.keyring.subkey(Purpose.AUDIT)
        return store
