"""What travels to and from the rest of `sys`: health, seal, leader, mounts, metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from broker.api.fields import DurationSeconds, LenientInt, Wire
from broker.errors import InvalidRequest

_STATUSES = range(200, 600)


class HealthQuery(Wire):
    """Which status the health check shall answer with. Most speak of states that this broker is never in."""

    activecode: LenientInt = Field(200, description="Status to answer with when all is well, 200 to 599.")
    maxoverdue: DurationSeconds | None = Field(
        None,
        description="How late a revocation may be, in seconds, before the answer is `overduecode`; left out: no delay changes it.",
    )
    overduecode: LenientInt = Field(503, description="Status to answer with when a revocation is later, 200 to 599.")
    standbycode: LenientInt = Field(429, description="Status of a standby.")
    sealedcode: LenientInt = Field(503, description="Status when sealed.")
    uninitcode: LenientInt = Field(501, description="Status before the store is made.")
    drsecondarycode: LenientInt = Field(472, description="Status of a recovery replica.")
    haunhealthycode: LenientInt = Field(474, description="Status of a standby that lost its leader.")
    performancestandbycode: LenientInt = Field(473, description="Status of a performance standby.")
    removedcode: LenientInt = Field(530, description="Status of a removed node.")

    def status(self, overdue_s: int) -> int:
        """The status to answer with when the oldest revocation is so late. Raises `InvalidRequest` for one that HTTP does not have."""
        for field in ("activecode", "overduecode"):
            if getattr(self, field) not in _STATUSES:
                raise InvalidRequest(f"{field}: not a status; allowed are 200 to 599")
        late = self.maxoverdue is not None and overdue_s > self.maxoverdue
        return self.overduecode if late else self.activecode


class Health(BaseModel):
    """What the health check answers."""

    initialized: bool = Field(default=True, description="Whether the store was made.")
    sealed: bool = Field(default=False, description="Whether the store is closed.")
    standby: bool = Field(default=False, description="Whether another process answers instead.")
    performance_standby: bool = Field(default=False, description="Always false.")
    replication_performance_mode: str = Field("disabled", description="Always `disabled`.")
    replication_dr_mode: str = Field("disabled", description="Always `disabled`.")
    server_time_utc: int = Field(description="Broker time, in Unix seconds.")
    version: str = Field(
        description="The version of Vault's API that clients may rely on, with the broker's own behind the plus."
    )
    enterprise: bool = Field(default=False, description="Always false.")
    cluster_name: str = Field(description="Name of the broker.")
    cluster_id: str = Field(description="Id of the broker's store.")
    revocations_overdue: int = Field(
        description="Leases past their end whose users are not gone yet, as of the last second; stuck ones do not count. 10,000 at most."
    )
    revocations_oldest_overdue_seconds: int = Field(description="How long the oldest of them is past its end.")


class SealStatus(BaseModel):
    """How the store is sealed: by one key that is at hand, so it is never found sealed."""

    type: str = Field("static", description="Kind of seal.")
    initialized: bool = Field(default=True, description="Whether the store was made.")
    sealed: bool = Field(default=False, description="Whether the store is closed.")
    t: int = Field(1, description="Keys needed to open it.")
    n: int = Field(1, description="Keys that there are.")
    progress: int = Field(0, description="Keys given so far.")
    nonce: str = Field("", description="Always empty.")
    version: str = Field(description="As in the health check.")
    build_date: str = Field("", description="Always empty.")
    migration: bool = Field(default=False, description="Always false.")
    cluster_name: str = Field(description="Name of the broker.")
    cluster_id: str = Field(description="Id of the broker's store.")
    recovery_seal: bool = Field(default=False, description="Always false.")
    storage_type: str = Field("sqlite", description="Kind of store.")


class Leader(BaseModel):
    """Who answers: this process alone."""

    ha_enabled: bool = Field(default=False, description="Whether there are replicas.")
    is_self: bool = Field(default=False, description="Always false without replicas, as Vault has it.")
    leader_address: str = Field("", description="Always empty.")
    leader_cluster_address: str = Field("", description="Always empty.")
    performance_standby: bool = Field(default=False, description="Always false.")
    performance_standby_last_remote_wal: int = Field(0, description="Always 0.")


class MountConfig(BaseModel):
    """Settings of a mount; 0 means the broker's own."""

    default_lease_ttl: int = Field(0, description="Seconds.")
    max_lease_ttl: int = Field(0, description="Seconds.")
    force_no_cache: bool = Field(default=False, description="Always false.")


class MountTuning(MountConfig):
    """Settings of a mount, as a client reads them that may tune mounts elsewhere."""

    description: str = Field(description="A sentence for people.")
    options: dict[str, str] | None = Field(None, description="Always null.")


class Mount(BaseModel):
    """What stands at a path."""

    type: str = Field(description="Kind of engine: `database`, `system`, `token`.")
    description: str = Field(description="A sentence for people.")
    accessor: str = Field(description="Names the mount in the audit log.")
    uuid: str = Field(description="Id of the mount.")
    local: bool = Field(default=False, description="Always false.")
    seal_wrap: bool = Field(default=False, description="Always false.")
    external_entropy_access: bool = Field(default=False, description="Always false.")
    options: dict[str, str] | None = Field(None, description="Always null.")
    plugin_version: str = Field("", description="Always empty.")
    running_plugin_version: str = Field("", description="Version that runs.")
    running_sha256: str = Field("", description="Always empty.")
    deprecation_status: str = Field("supported", description="Always `supported`.")
    config: MountConfig = Field(default_factory=MountConfig, description="Settings of the mount.")


class MountSeen(Mount):
    """The mount that a path lies in."""

    path: str = Field(description="Where it stands.")


class Mounts(RootModel[dict[str, Mount]]):
    """What stands where, by path."""


class MountsSeen(BaseModel):
    """What stands where, as far as the caller may see it."""

    secret: dict[str, Mount] = Field(description="Mounts of secrets, by path.")
    auth: dict[str, Mount] = Field(description="Mounts of login methods, by path without `auth/`.")


class Initialised(BaseModel):
    """Whether there is a store."""

    initialized: bool = Field(default=True, description="Whether the store was made.")


class Specification(BaseModel):
    """An OpenAPI document."""

    model_config = ConfigDict(extra="allow")

    openapi: str = Field(description="Version of OpenAPI.")
    paths: dict[str, object] = Field(description="The operations, by path and method.")


class MetricsQuery(Wire):
    """In which form metrics are asked for."""

    format: Literal["", "prometheus"] = Field("", description="`prometheus`: its text format. Left out: JSON.")


class Gauge(BaseModel):
    """A value as it stands."""

    Name: str = Field(description="The metric.")
    Value: float = Field(description="What it stands at.")
    Labels: dict[str, str] = Field(description="What it is of.")


class Totals(BaseModel):
    """What was counted since the start."""

    Name: str = Field(description="The metric.")
    Count: int = Field(description="How often something happened.")
    Sum: float = Field(description="What it came to: the same number, or seconds.")
    Labels: dict[str, str] = Field(description="What it is of.")


class Metrics(BaseModel):
    """All metrics, in the form and the spelling that Vault's agents read; counts are since the start, not of an interval."""

    Timestamp: str = Field(description="Broker time.")
    Gauges: list[Gauge] = Field(default_factory=list, description="Values as they stand.")
    Points: list[Gauge] = Field(default_factory=list, description="Always empty.")
    Counters: list[Totals] = Field(default_factory=list, description="What was counted.")
    Samples: list[Totals] = Field(default_factory=list, description="What was timed, in seconds.")
