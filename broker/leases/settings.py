"""How leases live here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from broker.duration import ConfiguredSeconds, not_below


class LeaseSettings(BaseModel):
    """Section `[leases]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    default_ttl: ConfiguredSeconds = Field(
        3_600,
        ge=1,
        description="How long a lease lives when neither the request nor the role says so; seconds or a text such as 1h.",
    )
    max_ttl: ConfiguredSeconds = Field(
        86_400, ge=1, description="The longest that a lease may live with all its renewals; a role can only lower it."
    )
    max_per_role: int = Field(
        200_000, ge=0, description="The most live leases of one role (a role's own max_leases wins); past it 429. 0: no limit."
    )
    max_per_token: int = Field(
        200_000, ge=0, description="The most live leases that one token may hold; past it 429. 0: no limit."
    )
    burst_alarm: int = Field(
        2_000,
        ge=0,
        description=(
            "By how many the live leases of one role or token may grow within an hour before a warning is logged, once for each "
            "such burst, and counted. It refuses nothing; max_per_role and max_per_token do. 0: no alarm."
        ),
    )
    issue_timeout_s: float = Field(
        30,
        gt=0,
        le=300,
        description="How long one issue may take; a client is answered with 503 after it, and what was begun is removed.",
    )
    revocation_batch: int = Field(
        256, ge=1, le=256, description="How many users are revoked together; 256 keeps PostgreSQL's shared lock table safe."
    )
    mass_expiry: int = Field(
        100,
        ge=1,
        description="From how many leases due at once on a connection its database's clock is asked first whether it is really that late.",
    )
    sweep: ConfiguredSeconds = Field(
        30,
        ge=1,
        description="How often each database is searched for sessions of users that no longer exist, which are ended; also done at the"
        " start.",
    )
    reconcile: ConfiguredSeconds = Field(
        3_600,
        ge=0,
        description="How often users of each database are compared with the leases of the store, a tenth sooner or later; what differs"
        " beyond doubt is put right, the rest is told. 0: only when asked to.",
    )
    failover_margin: ConfiguredSeconds = Field(
        3_600,
        ge=0,
        description="When a database fails over, leases are checked again back to the last commit that the new server is known to have, and"
        " this long before it.",
    )
    refill_batch: int = Field(32, ge=1, le=256, description="How many prepared users are made in one go.")
    tombstones: ConfiguredSeconds = Field(
        604_800,
        ge=60,
        description="How long a gone lease is remembered, so that a user which a failover brings back is known and removed again.",
    )

    @field_validator("max_ttl")
    @classmethod
    def _holds_the_default(cls, max_ttl: int, info: ValidationInfo) -> int:
        return not_below(max_ttl, "default_ttl", info)
