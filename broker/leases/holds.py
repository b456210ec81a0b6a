"""Holds: which users' logins a call of this process is changing in their database at this moment.

A statement that is on its way can arrive after one that was sent later. So whoever turns a login off leaves those alone that somebody is
turning on, and of two who move an expiry the second waits for the first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

from broker.model import LeaseNumber

_AGAIN_S = 0.02


class Holds:
    """The leases of which somebody gives a login, and those of which somebody moves the end."""

    def __init__(self) -> None:
        self._logins: Counter[LeaseNumber] = Counter()
        self._renewals: set[LeaseNumber] = set()

    @property
    def logins(self) -> AbstractSet[LeaseNumber]:
        """Leases that a login is being given to; revocation leaves those for a moment."""
        return self._logins.keys()

    @property
    def renewals(self) -> AbstractSet[LeaseNumber]:
        """Leases whose end is being moved, in the database first: meanwhile that and the store differ."""
        return self._renewals

    @contextmanager
    def login(self, numbers: Collection[LeaseNumber]) -> Iterator[None]:
        """While a login is being given to these; several may do so at once."""
        self._logins.update(numbers)
        try:
            yield
        finally:
            for number in numbers:
                self._logins[number] -= 1
                if not self._logins[number]:
                    del self._logins[number]

    @contextmanager
    def renewal(self, number: LeaseNumber) -> Iterator[None]:
        """While this lease's end is being moved; one at a time, after `no_login`."""
        self._renewals.add(number)
        try:
            yield
        finally:
            self._renewals.discard(number)

    async def no_login(self, number: LeaseNumber) -> None:
        """Waits until nobody gives this lease a login, whose expiry is another than a renewal's."""
        while number in self._logins:  # noqa: ASYNC110 - a mark that others take away, for a moment
            await asyncio.sleep(_AGAIN_S)

    async def no_renewal(self, numbers: Collection[LeaseNumber]) -> None:
        """Waits until nobody moves the end of any of these."""
        while not self._renewals.isdisjoint(numbers):  # noqa: ASYNC110 - marks that others take away, for a moment
            await asyncio.sleep(_AGAIN_S)
