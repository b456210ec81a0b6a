"""How tokens live here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from broker.duration import ConfiguredSeconds, not_below


class TokenSettings(BaseModel):
    """Section `[tokens]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    default_ttl: ConfiguredSeconds = Field(
        86_400,
        ge=1,
        description="How long a token lives when its request does not say; seconds or a text such as 24h. One with the policy root"
        " that a root token without end makes has no end then.",
    )
    max_ttl: ConfiguredSeconds = Field(
        2_764_800,
        ge=1,
        description="The longest that a token may live with all its renewals (32 days); periodic tokens are exempt.",
    )
    cache_size: int = Field(
        10_000, ge=1, description="How many tokens are remembered, so that the store is not asked each time."
    )
    cache_ms: int = Field(
        5_000, ge=0, le=60_000, description="How long a token is believed before the store is asked again, in milliseconds."
    )

    @field_validator("max_ttl")
    @classmethod
    def _holds_the_default(cls, max_ttl: int, info: ValidationInfo) -> int:
        return not_below(max_ttl, "default_ttl", info)
