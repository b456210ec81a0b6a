"""Operations at `sys/leases`, and their old names without `leases/`."""

from __future__ import annotations

from broker.api.envelope import Keys
from broker.api.leases import (
    LeaseNamed,
    LeaseRenew,
    LeaseRevoke,
    LeaseShown,
    PrefixRevoke,
    StuckCount,
    StuckLease,
    StuckLeases,
    StuckQuery,
)
from broker.audit.entry import rfc3339
from broker.errors import NotFound
from broker.leases.query import LeaseView
from broker.server.mounts import DATABASE, SECRET
from broker.server.router import Call, Reply, Table
from broker.server.routes.database import left_behind, listed

TABLE = Table()
RENEWED = (200,)
REVOKED = (202, 204)
"""202 where it has only begun."""
FORCED = (200, 204)
"""200 where users stay behind, whom a warning counts."""
_ACCEPTED = Reply(status=202)
_DATABASE_ACCESSOR = str(SECRET[DATABASE]["accessor"])
_MOST_STUCK = 1_000_000


@TABLE.add("update", "sys/leases/lookup", takes=LeaseNamed, gives=LeaseShown)
async def look_up(call: Call) -> Reply:
    """Shows a lease."""
    lease_id = call.decode(LeaseNamed).required_id()
    return Reply(data=_shown(await call.services.query.lookup(lease_id)))


@TABLE.add("list", "sys/leases/lookup", gives=Keys)
@TABLE.add("list", "sys/leases/lookup/{prefix*}", gives=Keys)
async def list_leases(call: Call) -> Reply:
    """One level of the tree of lease ids."""
    return listed(await call.services.query.keys_under(call.params.get("prefix", "")))


@TABLE.add("update", "sys/leases/renew", takes=LeaseRenew, statuses=RENEWED)
@TABLE.add("update", "sys/leases/renew/{lease_id*}", takes=LeaseRenew, statuses=RENEWED)
@TABLE.add("update", "sys/renew", takes=LeaseRenew, statuses=RENEWED)
@TABLE.add("update", "sys/renew/{lease_id*}", takes=LeaseRenew, statuses=RENEWED)
async def renew(call: Call) -> Reply:
    """Gives a lease more time."""
    order = call.decode_with_path(LeaseRenew)
    renewed = await call.services.renewer.renew(order.required_id(), order.increment)
    return Reply(
        lease_id=renewed.lease_id, renewable=renewed.renewable, lease_duration_s=renewed.ttl_s, warnings=renewed.warnings
    )


@TABLE.add("update", "sys/leases/revoke", takes=LeaseRevoke, statuses=REVOKED)
@TABLE.add("update", "sys/leases/revoke/{lease_id*}", takes=LeaseRevoke, statuses=REVOKED)
@TABLE.add("update", "sys/revoke", takes=LeaseRevoke, statuses=REVOKED)
@TABLE.add("update", "sys/revoke/{lease_id*}", takes=LeaseRevoke, statuses=REVOKED)
async def revoke(call: Call) -> Reply:
    """Ends a lease."""
    order = call.decode_with_path(LeaseRevoke)
    if order.sync:
        await call.services.revoker.revoke(order.required_id())
        return Reply()
    await call.services.revoker.start(order.required_id())
    return _ACCEPTED


@TABLE.add("update", "sys/leases/revoke-prefix/{prefix*}", takes=PrefixRevoke, statuses=REVOKED)
@TABLE.add("update", "sys/revoke-prefix/{prefix*}", takes=PrefixRevoke, statuses=REVOKED)
async def revoke_prefix(call: Call) -> Reply:
    """Ends all leases under a path, or all tokens that were made there."""
    order, prefix = call.decode(PrefixRevoke), call.params["prefix"]
    if _names_tokens(prefix):
        await call.services.tokens.revoke_made_at(prefix)
    elif order.sync:
        await call.services.revoker.revoke_prefix(prefix)
    else:
        await call.services.revoker.start_prefix(prefix)
    return Reply() if order.sync else _ACCEPTED


@TABLE.add("update", "sys/leases/revoke-force/{prefix*}", statuses=FORCED)
@TABLE.add("update", "sys/revoke-force/{prefix*}", statuses=FORCED)
async def revoke_force(call: Call) -> Reply:
    """Takes all leases under a path off the books, whatever their database says; or ends all tokens that were made there."""
    if _names_tokens(call.params["prefix"]):
        await call.services.tokens.revoke_made_at(call.params["prefix"])
        return Reply()
    return left_behind(await call.services.revoker.forget_prefix(call.params["prefix"]))


@TABLE.add("update", "sys/leases/tidy", statuses=(202,))
async def tidy(call: Call) -> Reply:
    """Starts to erase what is no longer needed."""
    call.services.tidier.start()
    return Reply(
        status=202,
        warnings=[
            "Tidy operation successfully started. Any information from the operation will be printed to Vault's server logs."
        ],
    )


@TABLE.add("read", "sys/leases/count", takes=StuckQuery, gives=StuckCount)
async def count_stuck(call: Call) -> Reply:
    """How many leases are stuck."""
    if call.decode(StuckQuery).type != "irrevocable":
        raise NotFound
    count = await call.services.query.stuck_count()
    return Reply(data={"lease_count": count, "counts": {_DATABASE_ACCESSOR: count} if count else {}})


@TABLE.add("read", "sys/leases", takes=StuckQuery, gives=StuckLeases)
async def list_stuck(call: Call) -> Reply:
    """Which leases are stuck, why, and what would let them finish."""
    question = call.decode(StuckQuery)
    if question.type != "irrevocable":
        raise NotFound
    limit = question.listed() or _MOST_STUCK
    stuck = await call.services.query.stuck(limit + 1)
    shown = [_stuck(view) for view in stuck[:limit]]
    warnings = ["the list was cut at its limit; a greater limit, or none, shows more"] if len(stuck) > limit else []
    return Reply(data={"lease_count": len(shown), "leases": shown}, warnings=warnings)


def _names_tokens(prefix: str) -> bool:
    """Whether a prefix is one of tokens: to Vault they are leases of the paths that made them."""
    return f"{prefix}/".startswith("auth/")


def _shown(view: LeaseView) -> dict[str, object]:
    shown = LeaseShown(
        id=view.lease_id,
        path=view.path,
        issue_time=rfc3339(view.issue_ms),
        expire_time=rfc3339(view.expire_ms),
        last_renewal=_time(view.last_renewal_ms),
        renewable=view.renewable,
        ttl=view.ttl_s,
        capped_by=view.capped_by,
        state=view.state,
        stage=view.stage,
        username=view.username,
        token_accessor=view.token_accessor,
        sessions_until=_time(view.sessions_until_ms),
        failing_since=_time(view.failing_since_ms),
        revoke_error=view.revoke_error,
        remedy=list(view.remedy),
    )
    hidden = {field for field in ("sessions_until", "failing_since", "revoke_error", "remedy") if not getattr(shown, field)}
    return shown.model_dump(exclude=hidden)


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def _stuck(view: LeaseView) -> dict[str, object]:
    return StuckLease(
        lease_id=view.lease_id,
        mount_id=_DATABASE_ACCESSOR,
        error=view.revoke_error,
        username=view.username,
        failing_since=_time(view.failing_since_ms),
        remedy=list(view.remedy),
    ).model_dump()
