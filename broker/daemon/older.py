"""Whether the store is older than the audit log: put back from a copy, or robbed of its newest commits by its disc.

A lease is durable in the store before its answer is in the log. What the log says was handed out since the store's newest head,
and the store does not know as such, was therefore lost by the store. SQLite does not tell: it ends a write-ahead log where a frame
does not match its checksum, as after a crash (https://www.sqlite.org/fileformat2.html, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from broker.errors import BrokerError
from broker.ids import PublicIds
from broker.model import LeaseState
from broker.store.protocol import Store

_NOT_HANDED_OUT = frozenset({LeaseState.PREPARING, LeaseState.PREPARED})
_REMEDY = (
    "unless you put an older copy in its place, mistrust its disc; broker reconcile finds the users of these leases; "
    "tokens that were revoked meanwhile work again: revoke them anew"
)

log = structlog.get_logger(__name__)


async def tell(store: Store, ids: PublicIds, handed_out: Sequence[str]) -> None:
    """Logs an error where the store lacks leases that were handed out. Never raises a `BrokerError`: the start goes on."""
    try:
        lost = await lost_leases(store, ids, handed_out)
    except BrokerError as error:
        log.warning("store and audit log could not be compared", error=str(error))
        return
    if lost:
        log.error("the store is older than the audit log", leases_lost=len(lost), first=lost[0], remedy=_REMEDY)


async def lost_leases(store: Store, ids: PublicIds, handed_out: Sequence[str]) -> list[str]:
    """Those of these lease ids that the store does not know, or still holds for prepared. Raises what `Store.leases` does."""
    numbers = {lease_id: number for lease_id in handed_out if (number := ids.lease_number(lease_id)) is not None}
    known = await store.leases(numbers.values()) if numbers else ()
    kept = {lease.number for lease in known if lease.state not in _NOT_HANDED_OUT}
    return [lease_id for lease_id, number in numbers.items() if number not in kept]
