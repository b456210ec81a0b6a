"""Where what is kept is kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class StoreSettings(BaseModel):
    """Section `[store]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(
        Path("/var/lib/broker"),
        description="The state directory, made with mode 0700 where there is none: the store, and what else has no path of its own.",
    )
