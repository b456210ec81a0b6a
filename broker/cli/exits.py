"""Which exit status an error has; the only place that says so (sysexits.h where it has one)."""

from __future__ import annotations

from broker.errors import (
    AuditBroken,
    BrokerError,
    ConfigError,
    KeyUnusable,
    SealBroken,
    StoreDamaged,
    StoreInUse,
    Unavailable,
)

FAILED = 1
_STATUSES: tuple[tuple[type[BrokerError], int], ...] = (
    (ConfigError, 78),  # EX_CONFIG
    (KeyUnusable, 77),  # EX_NOPERM
    (StoreInUse, 75),  # EX_TEMPFAIL
    (Unavailable, 75),
    (SealBroken, 65),  # EX_DATAERR
    (StoreDamaged, 65),
    (AuditBroken, 65),
)


def status(error: BrokerError) -> int:
    """The exit status for `error`; 1 for what has none of its own."""
    return next((number for kind, number in _STATUSES if isinstance(error, kind)), FAILED)
