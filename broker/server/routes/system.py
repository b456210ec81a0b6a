"""Operations at `sys/`: health, seal status, leader, mounts."""

from __future__ import annotations

from broker.api.fields import decode
from broker.api.system import (
    Health,
    HealthQuery,
    Initialised,
    Leader,
    Mount,
    Mounts,
    MountSeen,
    MountsSeen,
    MountTuning,
    SealStatus,
)
from broker.errors import InvalidRequest, PermissionDenied
from broker.server import mounts
from broker.server.router import ANY_STATUS, Access, Call, Reply, Table

TABLE = Table()
OPEN = Access.OPEN


@TABLE.add("read", "sys/health", access=OPEN, takes=HealthQuery, gives=Health, statuses=(200, ANY_STATUS))
async def health(call: Call) -> Reply:
    """Says that all is well, by its status too, and how far revocation is behind."""
    overdue = call.services.backlog.overdue
    status = decode(HealthQuery, call.data).status(overdue.oldest_s)
    facts = call.services.facts
    body = Health(
        server_time_utc=call.services.clock.now_ms() // 1_000,
        version=facts.version,
        cluster_name=facts.cluster_name,
        cluster_id=facts.cluster_id,
        revocations_overdue=overdue.count,
        revocations_oldest_overdue_seconds=overdue.oldest_s,
    )
    return Reply(data=body.model_dump(), status=status)


@TABLE.add("read", "sys/seal-status", access=OPEN, gives=SealStatus)
async def seal_status(call: Call) -> Reply:
    """Says that the store is open."""
    facts = call.services.facts
    body = SealStatus(version=facts.version, cluster_name=facts.cluster_name, cluster_id=facts.cluster_id)
    return Reply(data=body.model_dump())


@TABLE.add("read", "sys/leader", access=OPEN, gives=Leader)
async def leader(_call: Call) -> Reply:
    """Says that there are no replicas."""
    return Reply(data=Leader().model_dump())


@TABLE.add("read", "sys/init", access=OPEN, gives=Initialised)
async def initialised(_call: Call) -> Reply:
    """Says that the store is made: that happens before the door opens."""
    return Reply(data=Initialised().model_dump())


@TABLE.add("read", "sys/mounts", gives=Mounts)
async def list_mounts(_call: Call) -> Reply:
    """What stands where."""
    return Reply(data=mounts.SECRET, beside=mounts.SECRET)


@TABLE.add("read", "sys/mounts/{path*}", gives=Mount)
async def read_mount(call: Call) -> Reply:
    """What stands at one path."""
    point = call.params["path"].rstrip("/") + "/"
    shown = mounts.SECRET.get(point)
    if shown is None:
        raise InvalidRequest(f"No secret engine mount at {point}")
    return Reply(data=shown, beside=shown)


@TABLE.add("read", "sys/mounts/database/tune", gives=MountTuning)
@TABLE.add("read", "sys/mounts/sys/tune", gives=MountTuning)
async def read_tuning(call: Call) -> Reply:
    """How a mount is set; that can't be changed."""
    shown = mounts.TUNING[call.path.removeprefix("sys/mounts/").removesuffix("tune")]
    return Reply(data=shown, beside=shown)


@TABLE.add("read", "sys/internal/ui/mounts", access=Access.OPTIONAL, gives=MountsSeen)
async def list_mounts_seen(call: Call) -> Reply:
    """What stands where, as far as the caller may see it: nothing without a token."""
    if call.passage is None:
        return Reply(data={"secret": {}, "auth": {}})
    return Reply(data={"secret": mounts.SECRET, "auth": mounts.AUTH})


@TABLE.add("read", "sys/internal/ui/mounts/{path*}", access=Access.OPTIONAL, gives=MountSeen)
async def read_mount_seen(call: Call) -> Reply:
    """Which mount a path lies in; agents ask before every read."""
    path = call.params["path"]
    point = path.partition("/")[0] + "/"
    shown = mounts.SECRET.get(point)
    if shown is None or call.passage is None:
        raise PermissionDenied(
            "preflight capability check returned 403, please ensure client's policies grant access to path "
            f'"{path.rstrip("/")}/"'
        )
    return Reply(data={**shown, "path": point})
