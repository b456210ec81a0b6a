"""Which of the servers that take writes is the one to work with. Pure: what was found and what is known in, a choice out.

Each promotion begins a timeline, so the highest one is the newest primary's. But two standbys of one primary begin the same number when
both are promoted, and a copy of a primary's files goes on with the number of the original. Nothing that a server says tells such two apart
(how far each has written its log grows with its load, not with its right), and a user that is absent on one is alive on the other. So of
two on one timeline only the server that was worked with is worked with further; where that one is not known, or away, neither is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Host: TypeAlias = tuple[str, int]

_SUPERSEDED = "the server was superseded: its timeline is {line}, and one with {known} was seen; where that is meant, reset the connection"
_STRANGER = (
    "takes writes on timeline {line} as {home} did, but is another server, and may lack what was done there; "
    "start that one, or where this one is meant, reset the connection"
)
_UNTOLD = "takes writes on timeline {line}, and so does {other}: which of them has the users can't be told; stop one of them"
_BEHIND = "{host} takes writes as well, on timeline {line}, though {leader} was promoted over it (timeline {best}): stop it"
_BESIDE = "{host} takes writes as well, on the same timeline {line} as {leader}: two primaries; stop one of them"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that takes writes, as it was found."""

    line: int
    """The number of its timeline; 0 where it can't be told."""
    started: str
    """Since when it runs: equal where two hosts are names of one server."""


@dataclass(frozen=True, slots=True)
class Known:
    """The server that was worked with last; `host` is None before the first."""

    timeline: int = 0
    """The highest that was seen, be it worked with or not; 0 while none was."""
    host: Host | None = None
    started: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of it: who leads, by all of its names in the order found, or for each host why it does not."""

    leader: tuple[Host, ...]
    known: Known
    refusals: Mapping[Host, str]
    concerns: tuple[str, ...]
    """See `Health.concerns`: hosts that take writes and must not."""


def choose(found: Mapping[Host, Server], known: Known) -> Choice:
    """The server to work with of those in `found`: at least one, in the order in which the hosts were written."""
    best = max(server.line for server in found.values())
    if 0 < best < known.timeline:
        return Choice((), known, {host: _superseded(server, known.timeline) for host, server in found.items()}, ())
    servers: dict[str, list[Host]] = {}
    for host, server in found.items():
        if server.line == best:
            servers.setdefault(server.started, []).append(host)
    if best > known.timeline:
        known = Known(best)
    started = _worked_with(servers, known)
    # Where timelines can't be told, a server that was promoted can't be told from a stranger either, and the only one is taken.
    if started is None and len(servers) == 1 and (known.host is None or not known.timeline):
        [started] = servers
    if started is None:
        return Choice((), known, {host: _why_not(host, found, known, best) for host in found}, ())
    leader = tuple(servers[started])
    concerns = tuple(
        (_BESIDE if server.line == best else _BEHIND).format(
            host=written(host), leader=written(leader[0]), line=server.line, best=best
        )
        for host, server in found.items()
        if host not in leader
    )
    return Choice(leader, Known(known.timeline, leader[0], started), {}, concerns)


def remembered(hosts: Sequence[Host], timeline: str, addresses: Collection[str]) -> Known:
    """The server that an earlier process worked with: nothing where it is none of the hosts any longer, or its timeline can't be told."""
    host = next((host for host in hosts if written(host) in addresses), None)
    line = int(timeline) if timeline.isdecimal() else 0
    return Known(line, host) if host and line else Known()


def written(host: Host) -> str:
    """A host and its port as one text."""
    return f"{host[0]}:{host[1]}"


def _worked_with(servers: Mapping[str, Sequence[Host]], known: Known) -> str | None:
    """Which of the servers is the known one: it has run since then under whatever name, or it was started anew under the same."""
    if known.started in servers:
        return known.started
    return next((started for started, hosts in servers.items() if known.host in hosts), None)


def _why_not(host: Host, found: Mapping[Host, Server], known: Known, best: int) -> str:
    server = found[host]
    if server.line < best:
        return _superseded(server, best)
    if known.host is not None and known.timeline:
        return _STRANGER.format(line=server.line, home=written(known.host))
    other = next(each for each, beside in found.items() if beside.line == best and beside.started != server.started)
    return _UNTOLD.format(line=server.line, other=written(other))


def _superseded(server: Server, known: int) -> str:
    return _SUPERSEDED.format(line=server.line, known=known)
