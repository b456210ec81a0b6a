"""The garbage collector of a daemon: what the start made is left alone, garbage in cycles still goes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from broker.daemon.collector import relax


class _Knot:
    """Something that refers to itself, so that no reference count ever frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_the_start_made_is_not_looked_at_again() -> None:
    """All that lives by then is out of the collector's sight."""
    relax()
    assert gc.get_freeze_count() > len(gc.get_objects())


def test_garbage_in_cycles_is_still_collected() -> None:
    """By itself, once enough was made after it.

    The loop is told of the end and never looks for it: from Python 3.12 on the collector runs as a call returns, and what that call
    had just given would be held by it.
    """
    relax()
    told: list[object] = []
    gone = weakref.ref(_Knot(), told.append)
    kept: list[list[object]] = []
    while not told and len(kept) < 10 * gc.get_threshold()[0]:
        kept.append([])
    assert gone() is None
