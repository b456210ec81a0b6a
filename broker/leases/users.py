"""What of a lease the engine is told: its database user, with the marker that proves whose it is."""

from __future__ import annotations

from broker.engines.protocol import User
from broker.mac import Mac
from broker.model import Lease, LeaseFacts, LeaseNumber, UserName

_MAC_CHARS = 32
"""128 bits: nobody forges one, and the comment stays short."""
_NUMBER_CHARS = 19
_LAST_NUMBER = (1 << 63) - 1


class Markers:
    """Makes the text kept beside a user in the database: `broker:v1:<broker>:<number>:<mac>`.

    Every database user may read it, so it holds the lease's internal number, never the lease id (whoever knows that may renew).
    """

    def __init__(self, broker_id: str, key: bytes) -> None:
        self._prefix = f"broker:v1:{broker_id}:"
        self._mac = Mac(key)

    def marker(self, number: LeaseNumber, name: UserName) -> str:
        """The marker of the user `name` of lease `number`."""
        body = f"{self._prefix}{number}"
        mac = self._mac.digest(f"{body}\x00{name}".encode()).hex()
        return f"{body}:{mac[:_MAC_CHARS]}"

    def number_in(self, marker: str) -> LeaseNumber | None:
        """The number that a marker of this broker names, proved by nothing yet; None for a text of another form."""
        number, _, mac = marker.removeprefix(self._prefix).partition(":")
        if not marker.startswith(self._prefix) or len(mac) != _MAC_CHARS or len(number) > _NUMBER_CHARS:
            return None
        if not number.isascii() or not number.isdecimal() or not 0 < int(number) <= _LAST_NUMBER:
            return None
        return LeaseNumber(int(number))

    def user(self, number: LeaseNumber, facts: LeaseFacts) -> User:
        """The user of a lease, as the engine needs it."""
        return User(
            number=number,
            name=facts.username,
            identity=facts.identity,
            marker=self.marker(number, facts.username),
            terms=facts.terms,
        )

    def of(self, lease: Lease) -> User:
        """The user of a stored lease."""
        return self.user(lease.number, lease.facts)
