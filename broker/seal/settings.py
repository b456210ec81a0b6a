"""Where the master key comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from broker.seal.providers import CredentialKey, EnvironmentKey, FileKey, KeyProvider


class SealSettings(BaseModel):
    """Section `[seal]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    provider: Literal["file", "environment", "credential"] = Field(
        "file",
        description="`file`: a 0600 file; `environment`: a variable, removed once read; `credential`: a systemd credential.",
    )
    path: Path | None = Field(
        None,
        strict=False,
        description="With `file`: the key file; unset: `master.key` in the state directory, made at the first start. Keep a copy "
        "elsewhere: without it the store can't be opened.",
    )
    name: str = Field(
        "",
        description="With `environment`: the variable; with `credential`: the credential's name. Required there, unused with `file`.",
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute path, such as /etc/broker/master.key")
        return path

    @field_validator("name")
    @classmethod
    def _given(cls, name: str, info: ValidationInfo) -> str:
        if not name and (kind := info.data.get("provider", "file")) != "file":
            raise ValueError(f'missing; it must be given with provider = "{kind}"')
        return name


def key_path(settings: SealSettings, directory: Path) -> Path:
    """The key file, where the settings name none: `master.key` in the state directory."""
    return settings.path or directory / "master.key"


def provider(settings: SealSettings, directory: Path) -> KeyProvider:
    """The key provider that the settings ask for."""
    if settings.provider == "file":
        return FileKey(key_path(settings, directory))
    return EnvironmentKey(settings.name) if settings.provider == "environment" else CredentialKey(settings.name)
