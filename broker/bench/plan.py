"""What a run of the bench does: every number that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass

USUAL_ITERATIONS = 4096
"""What PostgreSQL itself takes for SCRAM (`scram_iterations`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of one run."""

    clients: tuple[int, ...] = (1, 8, 32)
    """How many ask at the same time, one row of each kind for each."""
    seconds: float = 2.0
    """The length of one measurement of a rate."""
    rounds: int = 3
    """How often each row is measured; the median is shown."""
    scram_iterations: int = USUAL_ITERATIONS
    """Of the verifiers that the raw driver sends and that the broker makes on demand."""
    prepared: int = 5_000
    """Users in the pool, which is filled before each measurement; their verifiers have one iteration, to fill it fast."""
    revoked: int = 5_000
    """Users revoked at once; 0 leaves these rows out."""
    sessions: int = 200
    """Users revoked at once with an open session each; fewer where the server takes fewer connections."""
    singles: int = 100
    """Users revoked one after the other, with an open session each."""
    tables: int = 500
    """Users revoked at once with a table of their own each."""
    due: int = 10_000
    """Leases that end in the same second; 0 leaves these rows out."""
    scale: tuple[int, ...] = ()
    """Numbers of leases in the store, fewest first, between which start, memory and rates are compared."""
    limited: int = 0
    """Live users beside which a superuser's login and a plain CREATEROLE one are compared; 0 leaves these rows out."""
    reconciled: int = 0
    """Users, with as many leases, that database and store are compared about; 0 leaves this row out."""
    standby: bool = False
    """Whether users with a session on the primary and one on a hot standby are revoked, too."""
