"""What an operator may set about the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from broker.audit.trail import WAITING_MAX


class AuditSettings(BaseModel):
    """Where the audit log goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: Literal["file", "stdout"] = Field(
        "file",
        description="`file`: an entry is on disc before the answer leaves. `stdout`: entries are handed to whoever reads "
        "standard output, and their durability is that reader's.",
    )
    path: Path | None = Field(
        None,
        strict=False,
        description="The file, made with mode 0600 where there is none; unset: `audit.log` in the state directory. To "
        "rotate it, rename it and send SIGHUP; never copy and truncate it.",
    )
    waiting_max: int = Field(
        WAITING_MAX,
        ge=64,
        le=1_000_000,
        description="How many entries may wait for the disc before further requests are refused with 503; a request makes two.",
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute path, such as /var/log/broker/audit.log")
        return path
