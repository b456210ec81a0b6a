"""How Python's garbage collector runs in a daemon that makes some hundred short-lived objects for each request."""

from __future__ import annotations

import gc

_YOUNG = 20_000
"""More objects than what is in flight at once, so that a collection finds garbage and not requests; some megabytes of garbage at most."""
_MIDDLE = 20
_OLD = 50


def relax() -> None:
    """Leaves alone for good what the start has made, and looks at what is new less often than after each 700 objects.

    Nearly everything on the way of a request is freed by its reference count. With Python's own thresholds the collector cost a twentieth
    of the time of a lease and, with a full window of prepared users, made the slowest answers twice as slow.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
