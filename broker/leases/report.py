"""What a run of reconciling found and did, kept until the next one was asked for: figures for all, names for the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.catalog.connections import Connection
from broker.engines.protocol import Swept
from broker.errors import EngineError, UserRemains
from broker.leases.amend import Scope
from broker.leases.differences import Compared, Kind

SHOWN, SHOWN_IN_ALL = 100, 1_000
"""So many users of each connection, and of all in a run, are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Named:
    """One difference, as it is shown. Not the finding: a report is kept, and a prepared user's lease has its password."""

    kind: Kind
    username: str
    lease_id: str
    """Empty where the store has no such lease."""


@dataclass(slots=True)
class Report:
    """What was found on one connection."""

    connection: str
    compared: Compared = field(default_factory=Compared)
    found: Counter[Kind] = field(default_factory=Counter)
    amended: Counter[Kind] = field(default_factory=Counter)
    named: list[Named] = field(default_factory=list)
    swept: Sequence[Swept] = ()
    """What became of the sessions of users that no longer exist; empty in a run that changes nothing."""
    abandoned: Sequence[Swept] = ()
    """Such sessions as a run that changes nothing found them; empty in any other."""
    concerns: Sequence[str] = ()
    """See `Engine.inspect`."""
    error: str = ""
    """Why it was not compared to the end."""

    @property
    def sessions_ended(self) -> int:
        """How many sessions of users that no longer exist were ended."""
        return sum(each.sessions for each in self.swept if each.error is None)

    @property
    def sessions_left(self) -> int:
        """How many go on, as far as could be looked."""
        return sum(each.sessions for each in (*self.abandoned, *self.swept)) - self.sessions_ended

    @property
    def left_out(self) -> int:
        """How many differences are counted and not named."""
        return self.found.total() - len(self.named)


@dataclass(slots=True)
class Run:
    """One run over some connections."""

    scope: Scope
    connections: Sequence[Connection]
    expected: int = 0
    """How many leases there were to compare as it began; as many users are expected."""
    started_ms: int = 0
    ended_ms: int | None = None
    reports: list[Report] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """How many users and leases were compared so far."""
        return sum(report.compared.users + report.compared.leases for report in self.reports)

    @property
    def room(self) -> int:
        """How many more differences may be named."""
        return SHOWN_IN_ALL - sum(len(report.named) for report in self.reports)


def unswept(report: Report) -> list[str]:
    """What of the sessions of users that no longer exist goes on, or could not be looked for, in sentences.

    A login that may not end such sessions is told by the sweep itself, and is no news while there are none.
    """
    failed = [
        each
        for each in (*report.abandoned, *report.swept)
        if each.error and (each.identity or not isinstance(each.error, UserRemains))
    ]
    return [": ".join((*_whose(each), str(each.error), *_remedy(each.error))) for each in failed]


def _whose(swept: Swept) -> list[str]:
    return [part for part in (swept.place, f"user {swept.identity}" if swept.identity else "") if part]


def _remedy(error: EngineError | None) -> Sequence[str]:
    return error.remedy if isinstance(error, UserRemains) else ()
