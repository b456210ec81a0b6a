"""The engine keeps the promises of every engine, of those that prepare users, and of those whose servers end logins."""

from __future__ import annotations

from typing import Any

import pytest

from broker.engines.testing import EnginePromises, ExpiryPromises, PreparedPromises
from broker.secret import Secret
from broker_postgresql import issue, login


@pytest.fixture
def subject(scene: Any) -> Any:
    """The open engine of a scene, which meets the kit's protocol."""
    return scene


class TestEngine(EnginePromises):
    """What every engine promises."""


class TestPreparedUsers(PreparedPromises):
    """What `traits.prepares` promises."""


class TestServerExpiry(ExpiryPromises):
    """What `traits.server_expiry` promises."""

    @pytest.fixture
    def subject(self, scene: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The scene with a short grace, whose sessions end at once: the kit asks until the server refuses."""
        monkeypatch.setattr(issue, "GRACE_MS", 300)
        monkeypatch.setattr(login, "GRACE_MS", 300)
        keep = scene.log_in

        async def look(name: str, password: Secret) -> Any:
            opened = await keep(name, password)
            if opened is not None:
                await opened.wire.close()
            return opened

        scene.log_in = look
        return scene
