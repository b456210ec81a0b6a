"""Where the broker keeps its state."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class StoreSettings(BaseModel):
    """Section `[store]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    directory: Path = Field(
        Path("/var/lib/broker"),
        strict=False,
        description="The state directory, made with mode 0700 where there is none: the store, and whatever has no path of its own.",
    )

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: Path) -> Path:
        if not directory.is_absolute():
            raise ValueError("must be an absolute path, such as /var/lib/broker")
        return directory
