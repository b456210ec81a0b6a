"""How long and how much an engine may work before the guard steps in."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BreakerSettings(BaseModel):
    """Section `[engines.breaker]`: when a database that does not answer is left alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    failures: int = Field(
        5, ge=1, description="How many calls in a row must find the database unavailable before it is left alone for a while."
    )
    first_open_s: float = Field(
        1,
        gt=0,
        le=3_600,
        description="How long it is left alone the first time; doubled each time that it still does not answer.",
    )
    longest_open_s: float = Field(30, gt=0, le=3_600, description="The longest that it is left alone before it is asked again.")


class EngineSettings(BaseModel):
    """Section `[engines]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    connect_timeout_s: float = Field(
        10,
        gt=0,
        le=300,
        description="How long connecting, and asking how the server is, may take; all hosts of a connection together.",
    )
    issue_timeout_s: float = Field(
        15,
        gt=0,
        le=300,
        description="How long making, turning on and extending users may take; shorter than a client's patience.",
    )
    contain_timeout_s: float = Field(
        30, gt=0, le=3_600, description="How long turning logins off, and ending sessions, may take for one batch."
    )
    remove_timeout_s: float = Field(
        300,
        gt=0,
        le=86_400,
        description="How long releasing what users own, dropping and proving may take for one batch; every database is visited.",
    )
    list_timeout_s: float = Field(60, gt=0, le=3_600, description="How long the next 500 users of a listing may take.")
    max_in_flight: int = Field(
        64,
        ge=1,
        le=10_000,
        description="The most users being made on one connection at once; past it 429, so a slow database fills no memory.",
    )
    allowed_distributions: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Python distributions whose engine plugins may be loaded; others are only reported. Empty: all installed.",
    )
    breaker: BreakerSettings = Field(BreakerSettings(), description="When a database that does not answer is left alone.")
