"""Look up: what a lease is, and which there are."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import InvalidRequest
from broker.leases import lifecycle
from broker.leases.parts import Parts
from broker.model import Lease, LeaseNumber, LeaseState

_KEYS_MOST = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease as an operator sees it; never a password."""

    lease_id: str
    path: str
    issue_ms: int
    expire_ms: int
    last_renewal_ms: int | None
    renewable: bool
    ttl_s: int
    capped_by: str
    state: str
    stage: str
    username: str
    token_accessor: str
    """Of the token that it belongs to."""
    sessions_until_ms: int | None
    """Until when its open sessions may go on; None for one that is not in its grace."""
    failing_since_ms: int | None
    """When its revocation failed for the first time; None where it has not."""
    revoke_error: str
    """Why it is not gone yet: what holds up its whole connection, else what its own revocation failed of."""
    remedy: tuple[str, ...]


class Query:
    """Reads leases."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def lookup(self, lease_id: str) -> LeaseView:
        """One lease. Raises `InvalidRequest` for one that was never issued or is gone."""
        number = self._parts.ids.lease_number(lease_id)
        lease = None if number is None else await self._parts.store.lease(number)
        if lease is None or not lifecycle.live(lease.state):
            raise InvalidRequest("invalid lease")
        return self._view(lease)

    async def keys_under(self, prefix: str) -> list[str]:
        """One level of names below a path: folders end in `/`; under a role's path, the last parts of lease ids (100,000 at most)."""
        path = prefix.strip("/")
        keys = set()
        for known in await self._parts.store.list_paths():
            if known == path:
                return await self._ids_of(path)
            if not path or known.startswith(f"{path}/"):
                rest = known[len(path) + 1 :] if path else known
                keys.add(rest.split("/", 1)[0] + "/")
        return sorted(keys)

    async def stuck(self, limit: int) -> list[LeaseView]:
        """Leases whose quick attempts are used up, oldest first."""
        leases = await self._parts.store.leases_in((LeaseState.STUCK,), after=LeaseNumber(0), limit=limit)
        return [self._view(lease) for lease in leases]

    async def stuck_count(self) -> int:
        """How many are stuck."""
        return (await self._parts.store.tally(states=(LeaseState.STUCK,)))[LeaseState.STUCK]

    async def _ids_of(self, path: str) -> list[str]:
        numbers = await self._parts.store.list_leases(path, after=LeaseNumber(0), limit=_KEYS_MOST)
        return [self._parts.ids.lease_id(path, number).rpartition("/")[2] for number in numbers]

    def _is_over(self, lease: Lease) -> bool:
        return lease.state is not LeaseState.ACTIVE or lifecycle.ends_ms(lease) <= self._parts.store.now_ms()

    def _view(self, lease: Lease) -> LeaseView:
        facts = lease.facts
        active = lease.state is LeaseState.ACTIVE
        # One that is being ended has ended, for whoever compares times.
        expire_ms = lifecycle.ends_ms(lease) if active else min(facts.expires_ms, facts.revoke_started_ms or facts.expires_ms)
        return LeaseView(
            lease_id=self._parts.ids.lease_id(facts.path, lease.number),
            path=facts.path,
            issue_ms=facts.issued_ms,
            expire_ms=expire_ms,
            last_renewal_ms=facts.renewed_ms or None,
            renewable=active,
            ttl_s=max(0, (expire_ms - self._parts.store.now_ms()) // 1_000) if active else 0,
            # A token that ends earlier than it did when the lease was issued takes the lease with it.
            capped_by="token" if active and expire_ms < facts.expires_ms else facts.capped_by,
            state=lease.state.name.lower(),
            stage=lease.stage.name.lower(),
            username=facts.username,
            token_accessor=facts.accessor,
            sessions_until_ms=lifecycle.sessions_end_ms(lease) if lease.state is LeaseState.GRACE else None,
            failing_since_ms=facts.failing_since_ms or None,
            revoke_error=self._parts.held_up.get(lease.connection, facts.failure) if self._is_over(lease) else "",
            remedy=facts.remedy,
        )
