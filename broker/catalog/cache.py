"""Connections and roles as this process last read them. The store's `changes_since` is the truth; this only saves asking."""

from __future__ import annotations

from collections.abc import Sequence

from broker.catalog import connections, roles
from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.model import ConnectionNumber, Document


class Cache:
    """What the documents say, as of `revision`."""

    def __init__(self) -> None:
        self.revision = 0
        self.connections: dict[str, Connection] = {}
        self.retired: dict[ConnectionNumber, Connection] = {}
        """Deleted ones, which may still have leases."""
        self.roles: dict[str, Role] = {}
        self._retired_ms: dict[ConnectionNumber, int] = {}

    def take_in(self, document: Document, now_ms: int) -> None:
        """What a document says from now on."""
        self.revision = max(self.revision, document.revision)
        if document.kind == connections.KIND:
            self._take_connection(connections.from_document(document), now_ms)
        elif document.kind == connections.LINE:
            self._take_line(document)
        elif document.kind == roles.KIND and document.deleted:
            self.roles.pop(document.name, None)
        elif document.kind == roles.KIND:
            self.roles[document.name] = roles.from_document(document)

    def by_number(self, number: ConnectionNumber) -> Connection | None:
        """The connection of that number, be it deleted."""
        if number in self.retired:
            return self.retired[number]
        return next((each for each in self.connections.values() if each.number == number), None)

    def retired_until(self, ms: int) -> Sequence[Connection]:
        """The deleted ones of which this process heard by then."""
        return [connection for connection in self.retired.values() if self._retired_ms[connection.number] <= ms]

    def forget_retired(self, number: ConnectionNumber) -> None:
        """Lets go of a deleted one."""
        del self.retired[number], self._retired_ms[number]

    def _take_connection(self, connection: Connection, now_ms: int) -> None:
        if not connection.deleted:
            self.connections[connection.name] = connection
            return
        current = self.connections.get(connection.name)
        if current is not None and current.number == connection.number:
            del self.connections[connection.name]
        self.retired[connection.number] = connection
        self._retired_ms.setdefault(connection.number, now_ms)

    def _take_line(self, document: Document) -> None:
        number = ConnectionNumber(int(document.name))
        if number in self.retired and not document.deleted:
            self.retired[number] = connections.with_line(self.retired[number], document)
