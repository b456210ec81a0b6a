"""The kit that says whether an engine plugin keeps the promises of `broker.engines.protocol`.

A plugin's tests subclass what its traits declare and offer one fixture, `subject`:

    @pytest.fixture
    async def subject() -> AsyncIterator[Subject]: ...

    class TestEngine(EnginePromises): ...
    class TestPreparedUsers(PreparedPromises): ...       # traits.prepares
    class TestServerExpiry(ExpiryPromises): ...          # traits.server_expiry
"""

from broker.engines.testing.expiry import ExpiryPromises
from broker.engines.testing.prepared import PreparedPromises
from broker.engines.testing.promises import EnginePromises
from broker.engines.testing.subject import Session, Subject

__all__ = ["EnginePromises", "ExpiryPromises", "PreparedPromises", "Session", "Subject"]
