"""What was configured: one TOML file, each section checked by the settings of its room.

Every mistake is named with its key and what is allowed; unknown keys are refused. Environment variables are not read here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.audit.settings import AuditSettings
from broker.engines.settings import EngineSettings
from broker.errors import ConfigError
from broker.identity.settings import TokenSettings
from broker.leases.settings import LeaseSettings
from broker.log import LogSettings
from broker.seal.settings import SealSettings
from broker.server.settings import ServerSettings
from broker.store.settings import StoreSettings

_MOST_BITS = 63
_SECTION = "must be a section"
_WORDS = {
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "dict_type": _SECTION,
    "path_type": "must be a path, as text in quotes",
    "string_type": "must be text in quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "list_type": "must be a list in square brackets",
    "tuple_type": "must be a list in square brackets",
    "set_type": "must be a list in square brackets",
    "frozen_set_type": "must be a list in square brackets",
}
"""pydantic's kinds of mistakes whose own text speaks of Python."""


class Config(BaseModel):
    """The whole configuration; each part is the section of the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: ServerSettings = Field(default_factory=ServerSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    seal: SealSettings = Field(default_factory=SealSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    leases: LeaseSettings = Field(default_factory=LeaseSettings)
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    engines: EngineSettings = Field(default_factory=EngineSettings)
    log: LogSettings = Field(default_factory=LogSettings)


def load(path: Path) -> Config:
    """The configuration in a file. Raises `ConfigError` with one line for each mistake."""
    try:
        with path.open("rb") as file:
            return parse(tomllib.load(file))
    except OSError as error:
        raise ConfigError([f"{path}: can't be read ({error.strerror})"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text, at byte {error.start}"]) from None


def parse(content: dict[str, Any]) -> Config:
    """The configuration in a parsed document. Raises `ConfigError` with one line for each mistake."""
    unfit = dict(_unfit(content))
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        others = [mistake for mistake in error.errors(include_url=False, include_input=False) if _key(mistake) not in unfit]
        raise ConfigError([*unfit.values(), *map(_line, others)]) from None
    if unfit:
        raise ConfigError(list(unfit.values()))
    if contradictions := list(_contradictions(config)):
        raise ConfigError(contradictions)
    return config


def _unfit(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Values that no setting may have, by their key: what the store and the system have no room for, whatever is allowed otherwise."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _unfit(value, f"{key}.{name}" if key else name)
    elif isinstance(content, int) and content.bit_length() > _MOST_BITS:
        yield key, f"{key}: must be a smaller number: whole numbers have 64 bits in TOML"
    elif isinstance(content, str) and "\0" in content:
        yield key, f"{key}: must not contain a NUL character"


def _contradictions(config: Config) -> Iterator[str]:
    """Time limits of which the inner one would never be reached."""
    engine_s, issue_s, request_s = (
        config.engines.issue_timeout_s,
        config.leases.issue_timeout_s,
        config.server.request_timeout_s,
    )
    if engine_s > issue_s:
        yield f"engines.issue_timeout_s: {engine_s:g} is more than leases.issue_timeout_s ({issue_s:g}), which ends the issue before"
    if issue_s > request_s:
        yield f"leases.issue_timeout_s: {issue_s:g} is more than server.request_timeout_s ({request_s:g}), which ends the request before"


def _key(mistake: Any) -> str:
    return ".".join(str(part) for part in mistake["loc"])


def _line(mistake: Any) -> str:
    key = _key(mistake)
    if mistake["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed in this place are {_allowed(mistake['loc'][:-1])}"
    return f"{key}: {_WORDS.get(mistake['type']) or _plain(mistake['msg'])}"


def _plain(text: str) -> str:
    return text.removeprefix("Value error, ").replace("Input should be", "must be", 1)


def _allowed(section: tuple[str | int, ...]) -> str:
    model: type[BaseModel] = Config
    for part in section:
        annotation = model.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return ", ".join(sorted(model.model_fields))
