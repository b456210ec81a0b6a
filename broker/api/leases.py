"""What travels to and from `sys/leases`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from broker.api.fields import DurationSeconds, LenientBool, ShortText, Text, Wire
from broker.errors import InvalidRequest

LISTED_LEASES = 10_000
"""How many stuck leases are listed unless the caller sets another limit."""


class LeaseNamed(Wire):
    """A request about one lease."""

    lease_id: Text = Field("", description="The lease's id, as it was issued.")

    def required_id(self) -> str:
        """The lease id. Raises `InvalidRequest` when none was given."""
        if not self.lease_id:
            raise InvalidRequest("lease_id must be specified")
        return self.lease_id


class LeaseRenew(LeaseNamed):
    """A request for more time."""

    increment: DurationSeconds = Field(
        0, description="How long the lease shall live from now on, in seconds; 0 asks for the default."
    )


class LeaseRevoke(LeaseNamed):
    """A request to end a lease."""

    sync: LenientBool = Field(default=True, description="Whether to answer only when the user is gone from the database.")


class PrefixRevoke(Wire):
    """A request to end all leases under a path."""

    sync: LenientBool = Field(default=True, description="Whether to answer only when the users are gone from the database.")


class StuckQuery(Wire):
    """A question about leases whose revocation has failed so far."""

    type: ShortText = Field("", description="Which leases: `irrevocable`.")
    include_child_namespaces: LenientBool = Field(default=False, description="Of no effect: there are no namespaces.")
    limit: ShortText = Field("", description="The most leases to list, or `none` for all; empty takes 10000.")

    def listed(self) -> int | None:
        """The most leases to list, None for all. Raises `InvalidRequest`."""
        if self.limit in ("", "none"):
            return LISTED_LEASES if not self.limit else None
        if not (self.limit.isascii() and self.limit.isdigit() and 0 < int(self.limit) <= LISTED_LEASES**2):
            raise InvalidRequest("invalid 'limit' provided: allowed are a whole number above 0, or none")
        return int(self.limit)


class LeaseShown(BaseModel):
    """A lease as lookup shows it: Vault's fields, then what this broker adds."""

    id: str = Field(description="The lease's id.")
    path: str = Field(description="The path that was read to get it.")
    issue_time: str = Field(description="When it was issued (RFC 3339).")
    expire_time: str | None = Field(description="When it ends unless it is renewed (RFC 3339).")
    last_renewal: str | None = Field(description="When it was last renewed (RFC 3339).")
    renewable: bool = Field(description="Whether it can be renewed.")
    ttl: int = Field(description="How long it lives from now on, in seconds.")
    capped_by: str = Field(description="What made its life shorter than asked: empty, `max_ttl`, `token` or `ttl_jitter`.")
    state: str = Field(description="Where it is in its life: `active`, `grace`, `revoking`, `stuck` ...")
    stage: str = Field(description="What has been done already of its revocation.")
    username: str = Field(description="The database user that was made for it.")
    token_accessor: str = Field(description="Accessor of the token that it belongs to and ends with.")
    sessions_until: str | None = Field(
        None, description="Until when its open sessions may go on, where it is in its grace (RFC 3339)."
    )
    failing_since: str | None = Field(None, description="Since when its revocation has been failing (RFC 3339).")
    revoke_error: str = Field(
        "", description="What its revocation has failed of so far, or what holds up all of its connection."
    )
    remedy: list[str] = Field(default_factory=list, description="Statements that let a stuck revocation finish.")


class StuckLease(BaseModel):
    """One lease whose revocation has failed so far."""

    lease_id: str = Field(description="The lease's id.")
    mount_id: str = Field(description="Accessor of the mount that it belongs to.")
    error: str = Field(description="The last failure.")
    username: str = Field(description="The database user that is still there, without login.")
    failing_since: str | None = Field(description="Since when its revocation has been failing (RFC 3339).")
    remedy: list[str] = Field(description="Statements that let its revocation finish.")


class StuckLeases(BaseModel):
    """Leases whose revocation has failed so far."""

    lease_count: int = Field(description="How many are listed.")
    leases: list[StuckLease] = Field(description="Which, oldest first.")


class StuckCount(BaseModel):
    """How many leases' revocation has failed so far."""

    lease_count: int = Field(description="How many in all.")
    counts: dict[str, int] = Field(description="How many by accessor of their mount, where there are any.")
