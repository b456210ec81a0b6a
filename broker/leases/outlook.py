"""Outlook: what there is of a role or connection that somebody thinks of deleting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.catalog import roles
from broker.leases.parts import Parts
from broker.model import LeaseState

_LIVE = (LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.GRACE, LeaseState.REVOKING, LeaseState.STUCK)
_POOLED = (LeaseState.PREPARING, LeaseState.PREPARED)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Live leases, reserved to stuck, and users that are kept prepared."""

    live: int
    prepared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a role or connection holds. `last_end_ms`: when the last of its active leases ends if nobody renews or revokes it."""

    exists: bool
    holdings: Holdings
    last_end_ms: int | None
    roles: Mapping[str, Holdings]
    """Of a connection: the roles that use it, with all that they hold, also at a former connection."""
    connection: str


class Outlooks:
    """Reads; changes nothing."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def of_role(self, name: str) -> Outlook:
        """What a role of that name holds; leases may be left of one that is deleted."""
        role = self._parts.catalog.role(name)
        return Outlook(
            exists=role is not None,
            holdings=await self._held(name),
            last_end_ms=await self._parts.store.last_end_ms(roles.lease_path(name)),
            roles={},
            connection="" if role is None else role.db_name,
        )

    async def of_connection(self, name: str) -> Outlook:
        """What a connection of that name holds, with what is left of former ones of it."""
        catalog, store = self._parts.catalog, self._parts.store
        numbers = catalog.numbers_of(name)
        tallies = [await store.tally(number) for number in numbers]
        ends = [end for number in numbers if (end := await store.last_end_at_ms(number)) is not None]
        return Outlook(
            exists=name in catalog.connection_names(),
            holdings=Holdings(
                sum(tally[state] for tally in tallies for state in _LIVE),
                sum(tally[state] for tally in tallies for state in _POOLED),
            ),
            last_end_ms=max(ends, default=None),
            roles={role.name: await self._held(role.name) for role in catalog.roles() if role.db_name == name},
            connection=name,
        )

    async def _held(self, role: str) -> Holdings:
        path = roles.lease_path(role)
        return Holdings(await self._parts.store.live_size(path), await self._parts.store.pool_size(path))
