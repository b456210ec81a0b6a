"""Where the master key comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.errors import ConfigError
from broker.seal.providers import CredentialKey, EnvironmentKey, FileKey, KeyProvider


class SealSettings(BaseModel):
    """Section `[seal]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Literal["file", "environment", "credential"] = Field(
        "file",
        description="`file`: a 0600 file; `environment`: a variable, removed once read; `credential`: a systemd credential.",
    )
    path: Path | None = Field(
        None,
        description="With `file`: the key file; empty means `master.key` in the state directory, made at the first start. Keep a copy "
        "elsewhere: without it the store can't be opened.",
    )
    name: str = Field(
        "",
        description="With `environment`: the variable; with `credential`: the credential's name. Required there, unused with `file`.",
    )


def key_path(settings: SealSettings, directory: Path) -> Path:
    """The key file, where the settings name none: `master.key` in the state directory."""
    return settings.path or directory / "master.key"


def provider(settings: SealSettings, directory: Path) -> KeyProvider:
    """The key provider that the settings ask for. Raises `ConfigError` when it lacks its name."""
    if settings.provider == "file":
        return FileKey(key_path(settings, directory))
    if not settings.name:
        raise ConfigError([f'seal.name: missing; it must be given with provider = "{settings.provider}"'])
    return EnvironmentKey(settings.name) if settings.provider == "environment" else CredentialKey(settings.name)
