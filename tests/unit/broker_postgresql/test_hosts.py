"""Which of several hosts is worked with: whatever each of them is, and whichever answers first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import DatabaseUnavailable
from broker_postgresql import hosts
from broker_postgresql.hosts import Hosts
from broker_postgresql.primary import Known, remembered, written
from broker_postgresql.session import Greeting, Line, Session

A, B, C = ("a", 1), ("b", 2), ("c", 3)
NAMES = (A, B, C)
LIMIT_S = 30


class Wire:
    """A connection that is open until it is ended."""

    def __init__(self) -> None:
        self.open = True

    def add_log_listener(self, _: Any) -> None:
        """Nothing is ever told."""

    def terminate(self) -> None:
        self.open = False


@dataclass
class Server:
    """A server; each start has another `started`."""

    line: int = 1
    started: str = "s"
    writable: bool = True
    error: Exception | None = None
    silent: bool = False
    slow: bool = False
    cluster: str = "one"


@dataclass
class Network:
    """What answers at each host, how often each was asked, and every connection that was made."""

    servers: dict[tuple[str, int], Server]
    asked: list[tuple[str, int]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a silent host was given up."""

    async def connect(self, host: str, port: int) -> Session:
        """A connection, as the connector would make it: to a server that takes writes, or an error."""
        self.asked.append((host, port))
        server = self.servers[host, port]
        if server.silent:
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        if server.slow:
            # Behind all the others, however many turns each of them needs.
            for _ in range(10):
                await asyncio.sleep(0)
        if server.error is not None:
            raise server.error
        if not server.writable:
            raise DatabaseUnavailable("the server is a standby or read-only")
        wire: Any = Wire()
        session = Session(wire, greeting(server.started), server.cluster, Line(server.line))
        self.sessions.append(session)
        return session

    def open(self) -> list[Session]:
        """The connections that nobody has closed."""
        return [session for session in self.sessions if session.wire.open]  # type: ignore[attr-defined]  # a `Wire` of ours

    def at(self, host: tuple[str, int], session: Session) -> bool:
        """Whether the connection leads to the server at that host."""
        return session.greeting.started == self.servers[host].started


def greeting(started: str) -> Greeting:
    """What a server says of itself, of which only the start matters here."""
    return Greeting(
        version="18", number=180_000, writable=True, server_ms=0, started=started, login="b", database="app", pid=1,
        backend_start=datetime(2026, 1, 1, tzinfo=UTC), superuser=True, signals=True, seen_at_s=0.0, round_trip_s=0.0,
    )  # fmt: skip


def several(*servers: Server, known: Known = Known()) -> tuple[Hosts, Network]:  # noqa: B008 - a frozen one
    """Hosts a, b, c with these servers behind them, each a server of its own."""
    for name, server in zip("abc", servers, strict=False):
        server.started += name
    network = Network(dict(zip(NAMES, servers, strict=False)))
    return Hosts(list(network.servers), "connection main", known), network


async def leads(chosen: Hosts, network: Network) -> tuple[str, int]:
    """The host that the next connection, with all hosts asked, leads to; every other connection was closed."""
    chosen.doubt()
    session = await chosen.connect(network.connect)
    assert network.open() == [session]
    session.wire.terminate()
    [host] = [host for host in network.servers if network.at(host, session)]
    return host


async def refused(chosen: Hosts, network: Network) -> str:
    """Why there is nobody to work with; nothing stays open."""
    with pytest.raises(DatabaseUnavailable) as raised:
        await chosen.connect(network.connect)
    assert not network.open()
    return str(raised.value)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have next to no time once one has answered."""
    monkeypatch.setattr(hosts, "_GRACE_S", 0.01)


async def test_highest_timeline_leads_wherever_it_is_written() -> None:
    """Of servers that take writes the one with the highest timeline; the others are concerns, and their connections closed."""
    for place, line in enumerate((3, 3, 3)):
        servers = [Server(line=1), Server(line=2), Server(line=1)]
        servers[place].line = line
        chosen, network = several(*servers)
        assert await leads(chosen, network) == NAMES[place]
        assert len(chosen.concerns) == 2
        assert all("was promoted over it (timeline 3): stop it" in concern for concern in chosen.concerns)
        assert chosen.timeline == 3


async def test_all_read_only() -> None:
    """Nobody leads where all are standbys, and each is named with what it said."""
    chosen, network = several(*(Server(writable=False) for _ in NAMES))
    told = await refused(chosen, network)
    assert told.startswith("connection main: no server to work with; ")
    for name in ("a:1", "b:2", "c:3"):
        assert f"{name}: the server is a standby or read-only" in told


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.InterfaceError("closed"),
        asyncpg.exceptions.ProtocolError("not PostgreSQL"),
    ],
)
async def test_host_that_refuses_is_passed_over(error: Exception) -> None:
    """Whatever is wrong with one host, another one serves; where it is the only one, what it said is told."""
    chosen, network = several(Server(error=error), Server())
    assert await leads(chosen, network) == B
    network.servers[B].writable = False
    chosen.doubt()
    assert f"a:1: {str(error) or type(error).__name__}" in await refused(chosen, network)


@pytest.mark.usefixtures("no_grace")
async def test_silent_host_is_left_behind() -> None:
    """A host that accepts and never answers costs the others' grace; the call to it is ended, not left lying."""
    chosen, network = several(Server(silent=True), Server(), Server(writable=False))
    async with asyncio.timeout(LIMIT_S):
        assert await leads(chosen, network) == B
        await network.left.wait()


async def test_slow_host_with_a_higher_timeline_is_waited_for() -> None:
    """Who answers first does not lead: the others have their grace."""
    chosen, network = several(Server(line=1), Server(line=2, slow=True))
    assert await leads(chosen, network) == B


@pytest.mark.usefixtures("no_grace")
async def test_late_answer_is_closed() -> None:
    """A connection that comes after its host was given up does not stay open."""
    chosen, network = several(Server(), Server(silent=True))
    late: asyncio.Future[Session] = asyncio.get_running_loop().create_future()

    async def connect(host: str, port: int) -> Session:
        if (host, port) == B:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # It was just then that the server let it in.
                network.servers[B].silent = False
                late.set_result(await network.connect(host, port))
                return late.result()
        return await network.connect(host, port)

    session = await chosen.connect(connect)
    assert network.at(A, session)
    async with asyncio.timeout(LIMIT_S):
        await late
        while network.open() != [session]:
            await asyncio.sleep(0)


async def test_unforeseen_error_leaves_no_connection_open() -> None:
    """A mistake of this program comes through as what it is, and what the other hosts answered is closed."""
    chosen, network = several(Server(), Server(error=AssertionError("a mistake"), slow=True))
    with pytest.raises(AssertionError):
        await chosen.connect(network.connect)
    async with asyncio.timeout(LIMIT_S):
        while network.open():
            await asyncio.sleep(0)


async def test_two_primaries_on_one_timeline_are_refused() -> None:
    """Two standbys that were both promoted: neither is worked with, whichever is written or answers first, until one is stopped."""
    for slow in (A, B):
        chosen, network = several(Server(line=2), Server(line=2))
        network.servers[slow].slow = True
        told = await refused(chosen, network)
        assert "a:1: takes writes on timeline 2, and so does b:2" in told
        assert "b:2: takes writes on timeline 2, and so does a:1" in told
        network.servers[A].error = ConnectionRefusedError()
        assert await leads(chosen, network) == B
        network.servers[A].error = None
        assert await leads(chosen, network) == B


async def test_of_two_primaries_the_one_that_was_worked_with_goes_on() -> None:
    """A second primary on the leader's timeline changes nothing but the concerns, also where it is written before the leader."""
    chosen, network = several(Server(writable=False), Server())
    assert await leads(chosen, network) == B
    network.servers[A].writable = True
    assert await leads(chosen, network) == B
    [concern] = chosen.concerns
    assert concern == "a:1 takes writes as well, on the same timeline 1 as b:2: two primaries; stop one of them"
    network.servers[A].writable = False
    assert await leads(chosen, network) == B
    assert chosen.concerns == ()


async def test_of_two_primaries_the_one_that_an_earlier_process_worked_with_goes_on() -> None:
    """What is on record of the connection settles it after a restart, too; where the other one is alone it is refused."""
    known = remembered(NAMES, "4", ["elsewhere:1", written(NAMES[1])])
    both, network = several(Server(line=4), Server(line=4), known=known)
    assert await leads(both, network) == NAMES[1]
    assert [concern.startswith(written(NAMES[0])) for concern in both.concerns] == [True]
    alone, network = several(Server(line=4), Server(writable=False), known=known)
    with pytest.raises(DatabaseUnavailable, match="is another server"):
        await alone.connect(network.connect)


@pytest.mark.parametrize(
    ("timeline", "addresses"), [("", ["b:2"]), ("0", ["b:2"]), ("other", ["b:2"]), ("4", []), ("4", ["elsewhere:1"])]
)
def test_what_is_on_record_counts_only_where_it_can_be_told(timeline: str, addresses: list[str]) -> None:
    """A connection that was reset, or whose server is none of its hosts any longer, begins anew."""
    assert remembered([("a", 1), ("b", 2)], timeline, addresses) == Known()


async def test_other_primary_on_the_timeline_does_not_take_over() -> None:
    """When the leader is away, one on the same timeline that was no standby of it is refused; a promotion is not, nor a restart."""
    chosen, network = several(Server(), Server(writable=False), Server(writable=False))
    assert await leads(chosen, network) == A
    network.servers[A].error, network.servers[B].writable = ConnectionRefusedError(), True
    for _ in range(2):
        told = await refused(chosen, network)
        assert "b:2: takes writes on timeline 1 as a:1 did, but is another server" in told
        assert "reset the connection" in told
    network.servers[A].error, network.servers[A].started = None, "anew"
    assert await leads(chosen, network) == A
    network.servers[A].error, network.servers[C].writable, network.servers[C].line = ConnectionRefusedError(), True, 2
    assert await leads(chosen, network) == C


async def test_one_server_under_two_names_is_one() -> None:
    """A server that two hosts lead to is no second primary; either name will do, also when the other is away."""
    chosen, network = several(Server(writable=False), Server(), Server())
    network.servers[C].started = network.servers[B].started
    session = await chosen.connect(network.connect)
    assert (chosen.addresses, chosen.others, chosen.concerns) == (("b:2", "c:3"), ("a:1",), ())
    session.wire.terminate()
    network.servers[B].error = ConnectionRefusedError()
    chosen.doubt()
    session = await chosen.connect(network.connect)
    assert network.at(C, session)
    assert chosen.addresses == ("c:3",)


async def test_superseded_server_is_refused_when_it_returns() -> None:
    """After a timeline was seen a server behind it is worked with no more, alone or beside the newer one, or as the one host."""
    chosen, network = several(Server(), Server(writable=False))
    assert await leads(chosen, network) == A
    network.servers[A].error = ConnectionRefusedError()
    network.servers[B].writable, network.servers[B].line = True, 2
    assert await leads(chosen, network) == B
    network.servers[A].error = None
    assert await leads(chosen, network) == B
    assert "a:1 takes writes as well, on timeline 1" in chosen.concerns[0]
    network.servers[B].error = ConnectionRefusedError()
    chosen.doubt()
    assert "a:1: the server was superseded: its timeline is 1, and one with 2 was seen" in await refused(chosen, network)


async def test_only_host_that_falls_behind_is_refused() -> None:
    """A single host that comes back as a server with a lower timeline is not worked with, without any other to ask."""
    chosen, network = several(Server(line=2))
    await chosen.connect(network.connect)
    network.sessions.clear()
    network.servers[A].line = 1
    assert "superseded" in await refused(chosen, network)
    network.servers[A].line = 3
    assert network.at(A, await chosen.connect(network.connect))
    assert (chosen.addresses, chosen.others) == ((), ())


async def test_forgotten_server_is_no_measure() -> None:
    """After a new beginning whoever is found is worked with, be it on a lower timeline or another server on the same."""
    chosen, network = several(Server(line=2), Server(line=2, writable=False), Server(line=1, writable=False))
    assert await leads(chosen, network) == A
    for host in (B, C):
        network.servers[A].writable = network.servers[B].writable = False
        network.servers[host].writable = True
        chosen.forget()
        assert (chosen.timeline, chosen.addresses) == (0, ())
        assert await leads(chosen, network) == host


async def test_where_timelines_can_not_be_told_the_only_server_leads() -> None:
    """Without the right to know the timeline a failover looks like another server, and is followed; of two at once neither is."""
    chosen, network = several(Server(line=0), Server(line=0))
    assert "and so does" in await refused(chosen, network)
    network.servers[B].writable = False
    assert await leads(chosen, network) == A
    network.servers[A].writable, network.servers[B].writable = False, True
    assert await leads(chosen, network) == B


async def test_first_written_host_names_the_cluster() -> None:
    """Of servers of two clusters the one of the first host counts, though the other answered first."""
    chosen, network = several(Server(slow=True), Server(cluster="two", line=9))
    assert await leads(chosen, network) == A


async def test_look_finds_a_promotion_and_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look asks all hosts, keeps no connection, and follows a higher timeline; two of them at once leave nobody to lead."""
    monkeypatch.setattr(hosts, "_LOOK_EVERY_S", 0.0)
    chosen, network = several(Server(), Server(writable=False), Server(writable=False))
    await chosen.look(network.connect)
    assert network.asked == []
    assert await leads(chosen, network) == A
    for host in (B, C):
        network.servers[host].writable, network.servers[host].line = True, 2
    await chosen.look(network.connect)
    assert not network.open()
    assert chosen.timeline == 2
    assert "and so does" in await refused(chosen, network)
    network.servers[C].error = TimeoutError()
    assert await leads(chosen, network) == B
    for host in NAMES:
        network.servers[host].error = TimeoutError()
    await chosen.look(network.connect)
    network.servers[B].error = None
    session = await chosen.connect(network.connect)
    assert network.at(B, session)


async def test_look_that_misses_the_leader_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the leader does not answer a look, another server on its timeline is a concern and does not lead."""
    monkeypatch.setattr(hosts, "_LOOK_EVERY_S", 0.0)
    chosen, network = several(Server(writable=False), Server())
    assert await leads(chosen, network) == B
    network.servers[A].writable, network.servers[B].error = True, TimeoutError()
    await chosen.look(network.connect)
    assert "a:1: takes writes on timeline 1 as b:2 did" in chosen.concerns[0]
    network.servers[B].error = None
    session = await chosen.connect(network.connect)
    assert network.at(B, session)


async def test_leader_is_asked_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it answers nobody else is asked for a connection, and a look costs nothing before its time."""
    chosen, network = several(Server(writable=False), Server())
    await chosen.connect(network.connect)
    network.asked.clear()
    await chosen.connect(network.connect)
    await chosen.look(network.connect)
    assert network.asked == [B]


OUTAGES = st.one_of(
    st.none(), st.sampled_from([ConnectionRefusedError(), TimeoutError(), asyncpg.CannotConnectNowError("starting up")])
)
STATES = st.fixed_dictionaries({
    "line": st.integers(0, 3), "writable": st.booleans(), "error": OUTAGES, "slow": st.booleans(), "anew": st.booleans(),
})  # fmt: skip
ROUNDS = st.lists(st.tuples(st.lists(STATES, min_size=3, max_size=3), st.booleans()), min_size=1, max_size=6)


@given(ROUNDS)
def test_choice_holds_whatever_happens(rounds: list[tuple[list[dict[str, Any]], bool]]) -> None:
    """Over any history of servers that are promoted, restarted, away and back, only the right one is worked with, or nobody.

    It takes writes, has the highest timeline of all that answer and ever were seen, and on a timeline that was worked with already it is
    the same server as before. Nobody is it only where there is none such, or several might be it. Nothing else stays open.
    """
    asyncio.run(_hold(rounds))


async def _hold(rounds: list[tuple[list[dict[str, Any]], bool]]) -> None:
    chosen, network = several(Server(), Server(), Server())
    highest = 0
    worked: dict[int, tuple[str, int]] = {}
    for turn, (states, doubted) in enumerate(rounds):
        for host, state in zip(NAMES, states, strict=True):
            server = network.servers[host]
            server.line, server.writable, server.error, server.slow = (
                state["line"], state["writable"], state["error"], state["slow"],
            )  # fmt: skip
            if state["anew"]:
                server.started = f"{host} {turn}"
        if doubted:
            chosen.doubt()
        network.sessions.clear()
        answering = {host: each for host, each in network.servers.items() if each.writable and each.error is None}
        try:
            session = await chosen.connect(network.connect)
        except DatabaseUnavailable:
            assert not network.open()
            tops = [host for host, each in answering.items() if each.line == max(one.line for one in answering.values())]
            known = worked.get(answering[tops[0]].line or highest) if tops else None
            # Nobody, only where nobody took writes, all were behind, the right one was not there, or two could have been it.
            assert not tops or answering[tops[0]].line < highest or known not in (None, *tops) or len(tops) > 1
            highest = max([highest, *(each.line for each in answering.values())])
            continue
        assert network.open() == [session]
        [host] = [host for host in answering if network.at(host, session)]
        line = answering[host].line
        assert line == 0 or line >= highest
        if doubted:
            assert line == max(each.line for each in answering.values())
        highest = max(highest, line)
        # One whose timeline can't be told counts as on the highest that was seen: whoever else comes with that may be another server.
        if highest:
            assert worked.setdefault(line or highest, host) == host
        session.wire.terminate()
