"""What the tests of the engines' room share."""

from __future__ import annotations

import pytest

from broker.clock import SystemClock
from broker.engines.guard import Guard
from broker.engines.protocol import Engine, Origin
from broker.engines.settings import EngineSettings
from broker.metrics import Metrics
from broker.model import Terms
from broker.secret import Secret
from broker.testing.engine import FAIL, OWN, MemoryEngine, MemoryServer
from broker.testing.faults import Interposed


class MemorySession:
    """A session in the database in memory."""

    def __init__(self, server: MemoryServer, number: int) -> None:
        self._server = server
        self._number = number

    async def is_open(self) -> bool:
        """Whether it stands."""
        return self._server.is_open(self._number)


class MemorySubject:
    """The engine in memory as a subject of the promises."""

    terms = Terms(creation=("login",))
    failing_terms = Terms(creation=("login", FAIL))
    owning_terms = Terms(creation=("login", OWN))

    def __init__(self, server: MemoryServer, engine: Engine, origin: Origin) -> None:
        self.server = server
        self.engine = engine
        self.origin = origin

    async def log_in(self, name: str, password: Secret) -> MemorySession | None:
        """As an application logs in."""
        number = self.server.log_in(name, password)
        return None if number is None else MemorySession(self.server, number)

    async def exists(self, name: str) -> bool:
        """Whether anybody has that name."""
        return name in self.server.accounts

    async def add_stranger(self, name: str, password: Secret) -> None:
        """A user of somebody else's."""
        self.server.add(name, password=password.reveal())

    async def remove_by_hand(self, name: str) -> None:
        """Its sessions stay."""
        self.server.remove(name)


@pytest.fixture
def server() -> MemoryServer:
    """An empty database."""
    return MemoryServer()


@pytest.fixture
def origin() -> Origin:
    """This broker."""
    return Origin(broker="b0", boot="boot0")


@pytest.fixture
def metrics() -> Metrics:
    """Fresh metrics."""
    return Metrics()


@pytest.fixture
def make_subject() -> type[MemorySubject]:
    """Makes subjects of other engines in memory."""
    return MemorySubject


@pytest.fixture(params=["bare", "guarded", "interposed"])
def subject(request: pytest.FixtureRequest, server: MemoryServer, origin: Origin, metrics: Metrics) -> MemorySubject:
    """The engine in memory by itself, behind the guard, and behind a fault that does nothing: all keep the same promises."""
    engine: Engine = MemoryEngine(server, origin)
    if request.param == "guarded":
        engine = Guard(engine, "memory", EngineSettings(), metrics, SystemClock())
    if request.param == "interposed":
        engine = Interposed(engine, _nothing)
    return MemorySubject(server, engine, origin)


async def _nothing(_verb: str) -> None:
    """What happens before a verb when nothing does."""


class SetClock:
    """Broker time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        """The time that was set."""
        return self.ms

    def wall_ms(self) -> int:
        """The same."""
        return self.ms

    def raise_to(self, floor_ms: int) -> None:
        """Moves up to the floor."""
        self.ms = max(self.ms, floor_ms)


@pytest.fixture
def clock() -> SetClock:
    """A clock in the test's hand."""
    return SetClock()
