"""What a role may ask of this engine beside its statements, and what is odd about its terms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal

from msgspec import json
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from broker.errors import InstructionsFailed, InvalidRequest
from broker.model import Terms
from broker_postgresql.settings import LIST, NAME_BYTES, first_mistake

_GUC = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*", re.ASCII)
_GRANT_ON = re.compile(r"\bgrant\b(?:(?!\bgrant\b)[^;])*?\bon\s+(?:all\s+)?(\w+)", re.IGNORECASE)
"""Each search ends at the next GRANT: a text full of them would else be read as often as it has any."""
_ROOMY = frozenset({
    "schema", "database", "function", "functions", "procedure", "procedures", "routine", "routines", "type", "domain", "language",
    "large", "foreign", "tablespace", "parameter",
})  # fmt: skip
"""Kinds whose lists of rights may grow beyond a page (PostgreSQL stores them out of line)."""
_FULL = (
    "creation_statements: grants on tables or sequences to each user; after some 2,440 living users a table takes no further"
    " grant. Grant to a group role once, and name it in grant_roles"
)
_REMEMBERED = 256
_EMPTY = "creation_statements: empty, and no grant_roles; no lease can be issued under this role"


def _list(value: object) -> object:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _role_name(value: str) -> str:
    if not value or len(value.encode()) > NAME_BYTES or "\x00" in value:
        raise ValueError(f"must be a role's name: 1 to {NAME_BYTES} bytes")
    return value


RoleName = Annotated[str, BeforeValidator(lambda value: _role_name(value) if isinstance(value, str) else value)]


class RoleOptions(BaseModel):
    """The options of a role for PostgreSQL."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    grant_roles: Annotated[list[RoleName], BeforeValidator(_list), WithJsonSchema(LIST)] = Field(
        default_factory=list,
        description="Group roles that users join. Without creation statements users are made with a password and these memberships.",
    )
    owned_objects: Literal["contain", "reassign", "drop"] = Field(
        "contain",
        description="What happens to objects that a user leaves behind: `contain` keeps the user, without login, until somebody"
        " decides; `reassign` hands them to reassign_to; `drop` destroys them.",
    )
    reassign_to: str = Field(
        "",
        description="Who gets the objects; required with `reassign`. A role that the users could become by SET ROLE, which gets all;"
        " or one without rights of its own, which gets everything but code.",
    )
    owned_code: Literal["contain", "drop"] = Field(
        "contain",
        description="With `reassign`, what happens to code of users that could not become reassign_to (views, functions, triggers,"
        " rules and whatever else would run with its rights): `contain` keeps the user, without login; `drop` destroys the code.",
    )
    connection_limit: int | None = Field(
        None, ge=0, le=100_000, description="The most sessions of one user at once; unset: no limit."
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Settings of the users' sessions, e.g. statement_timeout."
    )


def read_options(terms: Terms) -> RoleOptions:
    """The options in `terms`, checked. Raises `InvalidRequest` naming the field."""
    try:
        options = RoleOptions.model_validate(_present(terms.options))
    except ValidationError as mistakes:
        raise InvalidRequest(first_mistake(mistakes)) from None
    if (options.owned_objects == "reassign") != bool(options.reassign_to):
        raise InvalidRequest("reassign_to: required with owned_objects = reassign, and of no use without")
    if options.owned_code == "drop" and options.owned_objects != "reassign":
        raise InvalidRequest("owned_code: drop is of use with owned_objects = reassign only")
    for name, value in options.settings.items():
        if not _GUC.fullmatch(name) or "\x00" in str(value):
            raise InvalidRequest("settings: a setting's name has letters, digits and _, and no value a NUL character")
    return options


def options_of(terms: Terms) -> RoleOptions:
    """The options of terms that a lease carries. Raises `InstructionsFailed` where they were never checked."""
    try:
        return _read_before(json.encode(terms.options))
    except InvalidRequest as error:
        raise InstructionsFailed(str(error)) from None


@lru_cache(_REMEMBERED)
def _read_before(options: bytes) -> RoleOptions:
    """The leases of a role carry equal options, which it would take longer to check than to find."""
    return read_options(Terms(options=json.decode(options)))


def warnings_about(terms: Terms) -> Sequence[str]:
    """What is odd about a role's terms, in sentences. Raises `InvalidRequest` naming the field that can't work."""
    _refuse_nul(terms)
    options = read_options(terms)
    unknown = sorted(terms.options.keys() - RoleOptions.model_fields.keys())
    found = [f"{name}: not known to the PostgreSQL engine; kept, and of no effect" for name in unknown]
    if not terms.creation and not options.grant_roles:
        found.append(_EMPTY)
    if any(match[1].lower() not in _ROOMY for text in terms.creation for match in _GRANT_ON.finditer(text)):
        found.append(_FULL)
    if terms.rollback:
        found.append("rollback_statements: of no effect here, since a failed creation is undone by its transaction")
    if options.owned_objects == "drop":
        found.append("owned_objects: whatever a user of this role creates is destroyed when its lease ends")
    if options.owned_code == "drop":
        found.append("owned_code: views and functions that a user of this role creates are destroyed when its lease ends")
    return found


def _present(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse_nul(terms: Terms) -> None:
    texts = {
        "creation_statements": terms.creation,
        "revocation_statements": terms.revocation,
        "renew_statements": terms.renewal,
        "rollback_statements": terms.rollback,
    }
    for field, statements in texts.items():
        if any("\x00" in statement for statement in statements):
            raise InvalidRequest(f"{field}: a NUL character can't be part of a statement")
