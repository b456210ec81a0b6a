"""Standbys that the connection does not name: nothing there ends with a revocation, and nobody would say so.

They can't be asked: where they fetch the log from is known, where they answer is not. But they can be counted, by any login. Those that
another standby feeds don't show on the primary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from broker.engines.protocol import Lack
from broker_postgresql.connector import Connector
from broker_postgresql.primary import Host, written
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier
from broker_postgresql.session import Session

_NEED = "end sessions on every standby"
_REASON = (
    "{count} fetch the server's log ({shown}), and the connection names {named} in standbys: a session on one that is not named"
    " goes on after a revocation, and reads"
)
_HIDDEN = (
    ". What the login may not see of them is whether they are servers: a base backup counts while it runs, and so does pg_receivewal;"
    " after GRANT pg_read_all_stats TO {login} they don't"
)
_SHOWN_AT_MOST = 5


def named_by(standbys: Iterable[Host], connector: Connector) -> set[str]:
    """The standbys that a connection names, without the server itself, which may be among them; after it was connected."""
    own = connector.hosts.addresses or [written(host) for host in connector.target.hosts]
    return {written(host) for host in standbys}.difference(own)


async def unnamed(session: Session, named: Collection[str]) -> list[Lack]:
    """What is missing where more standbys stream from the server than are `named`."""
    rows = await session.rows(QUERIES["streaming"])
    if len(rows) <= len(named):
        return []
    reason = _REASON.format(
        count=len(rows), shown=_shown([row["who"] for row in rows]), named=", ".join(sorted(named)) or "none"
    )
    if any(row["hidden"] for row in rows):
        reason += _HIDDEN.format(login=identifier(session.greeting.login))
    return [Lack(need=_NEED, reason=reason)]


def _shown(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN_AT_MOST} more"] if len(names) > _SHOWN_AT_MOST else []
    return ", ".join([*names[:_SHOWN_AT_MOST], *more])
