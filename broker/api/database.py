"""What travels to and from the database engine's paths: connections, roles, credentials."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from broker.api.fields import (
    NAME_CHARS,
    CommaList,
    DurationSeconds,
    KeyValues,
    LenientBool,
    LenientInt,
    ShortText,
    StringList,
    Wire,
    boolean,
)
from broker.errors import InvalidRequest

PREPARED_USERS = 10_000
"""The most users that one role may keep ready."""
TTL_JITTER = 50
"""The most percent by which a role may have its times to live shortened."""
SESSION_GRACE_S = 3_600
"""The longest that open sessions may go on when the time of their lease is over."""


class ConnectionWrite(Wire):
    """A connection as it is written: the broker's fields and those of its engine.

    An update merges over what is stored; a null takes away a field of the engine.
    """

    # What was sent stands in `model_fields_set` and, for the engine, in `model_extra`.
    keeps_unknown: ClassVar[bool] = True

    plugin_name: ShortText = Field("", description="Which engine speaks to the database; required when the connection is new.")
    plugin_version: ShortText = Field("", description="Version of the engine; empty takes the installed one.")
    verify_connection: LenientBool = Field(default=True, description="Whether to connect before the connection is kept.")
    allowed_roles: CommaList = Field(
        default_factory=list,
        description="Roles that may use the connection; `*` at the start or end of a name stands for any text. Empty: none.",
    )
    root_rotation_statements: StringList = Field(
        default_factory=list, description="Statements that set the connection's own new password; empty takes the engine's."
    )
    password_policy: ShortText = Field(
        "", description="Name of the policy for generated passwords; empty takes the broker's own."
    )


class RoleWrite(Wire):
    """A role as it is written: the broker's fields and options for the engine.

    An update merges over what is stored; a null takes away an option.
    """

    keeps_unknown: ClassVar[bool] = True

    db_name: ShortText = Field("", description="The connection in which users are made; required when the role is new.")
    creation_statements: StringList = Field(
        default_factory=list, description="What makes a user; a template of the engine's kind."
    )
    revocation_statements: StringList = Field(
        default_factory=list, description="What removes a user; empty takes the engine's staged revocation."
    )
    rollback_statements: StringList = Field(
        default_factory=list, description="What undoes a failed creation, for engines without transactions."
    )
    renew_statements: StringList = Field(default_factory=list, description="What extends a user; empty takes the engine's.")
    default_ttl: DurationSeconds = Field(0, description="How long a lease lives, in seconds; 0 takes the broker's default.")
    max_ttl: DurationSeconds = Field(
        0, description="How long a lease may live with renewals, in seconds; 0 takes the broker's maximum."
    )
    ttl_jitter: LenientInt = Field(
        0,
        ge=0,
        le=TTL_JITTER,
        description="By how many percent of itself each time to live may be shortened, by chance, when a lease is issued and when it is"
        " renewed, so that leases made together do not end together.",
    )
    session_grace: DurationSeconds = Field(
        0,
        description="For how long sessions that are open when the time of their lease is over may go on, in seconds; new logins are refused"
        " at once. At most an hour. Whoever revokes a lease ends its sessions at once.",
    )
    credential_type: ShortText = Field("password", description="What kind of credential is made: `password`.")
    credential_config: KeyValues = Field(default_factory=dict, description="Settings of the credential: `password_policy`.")
    prepared_users: LenientInt = Field(
        0,
        ge=0,
        le=PREPARED_USERS,
        description="How many users are kept ready, unable to log in, so that a lease is answered at once.",
    )
    reissue: LenientBool = Field(
        default=False, description="Whether the same token gets its living lease again instead of a new one, password included."
    )
    max_leases: LenientInt = Field(0, ge=0, description="The most live leases of the role; 0 means no limit.")
    lease_owner: ShortText = Field(
        "token",
        description="Which token a lease belongs to, counts for and ends with: `token`, the one that asks, or `identity`, the one without a"
        " parent from which that descends.",
    )
    rehearse: LenientBool = Field(
        default=True,
        description="Whether a role whose statements or options changed is tried out before it is kept: a user is made, logs in, is renewed"
        " and revoked. Not kept with the role.",
    )

    @field_validator("session_grace")
    @classmethod
    def _short(cls, value: int) -> int:
        if value > SESSION_GRACE_S:
            raise InvalidRequest(f"session_grace: too long; allowed are up to {SESSION_GRACE_S} seconds")
        return value

    @field_validator("lease_owner")
    @classmethod
    def _owner(cls, value: str) -> str:
        if value not in ("", "token", "identity"):
            raise InvalidRequest("lease_owner: not known; allowed are token and identity")
        return value or "token"

    @field_validator("credential_type")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value not in ("", "password"):
            raise InvalidRequest("credential_type: not supported; allowed is password")
        return "password"


def _explicit(value: object, info: ValidationInfo) -> bool:
    # Nobody who writes `?dry_run` means that it shall be deleted.
    if value == "":
        raise InvalidRequest(f"{info.field_name}: empty; allowed are true and false")
    return boolean(value, info.field_name or "value")


class Deletion(Wire):
    """How a role or a connection is deleted."""

    dry_run: Annotated[bool, BeforeValidator(_explicit)] = Field(
        default=False, description="Whether to delete nothing and to answer what a deletion would do."
    )
    drain: Annotated[bool, BeforeValidator(_explicit)] = Field(
        default=False, description="Whether live leases are revoked, in the background; otherwise they live on to their end."
    )

    def understood(self) -> Deletion:
        """Itself. Raises `InvalidRequest` for a field that it does not know: it may be `dry_run` misspelt."""
        for field in self.unknown():
            known = " and ".join(type(self).model_fields)
            raise InvalidRequest(f"{field[:NAME_CHARS]}: unknown; this deletion takes {known}")
        return self


class ConnectionDeletion(Deletion):
    """How a connection is deleted."""

    force: Annotated[bool, BeforeValidator(_explicit)] = Field(
        default=False,
        description="Whether its leases are taken off the books at once, without asking the database, for one that never comes back.",
    )

    def understood(self) -> ConnectionDeletion:
        """Itself. Raises `InvalidRequest` also where its leases are to be revoked and forgotten."""
        super().understood()
        if self.force and self.drain:
            raise InvalidRequest("force: allowed without drain; either the leases are revoked, or they are taken off the books")
        return self


class Held(BaseModel):
    """What a role holds."""

    live_leases: int = Field(description="Leases whose users exist: active, being made, or being revoked.")
    prepared_users: int = Field(description="Users that are kept ready.")


class RoleOutlook(Held):
    """What a deletion of a role would do."""

    role: str = Field(description="Name of the role.")
    exists: bool = Field(description="Whether there is such a role; of one that was deleted, leases may be left.")
    connection: str = Field(description="The connection that it uses.")
    leases_revoked: int = Field(description="How many of the live leases would be revoked: all with `drain`, else none.")
    latest_expiry: str | None = Field(description="When the last active lease ends by itself, as they stand now; null: none.")


class ConnectionOutlook(Held):
    """What a deletion of a connection would do."""

    connection: str = Field(description="Name of the connection.")
    exists: bool = Field(
        description="Whether there is such a connection; of one that was deleted or moved, leases may be left."
    )
    roles: dict[str, Held] = Field(description="The roles that use it. They stay, and can issue nothing without it.")
    leases_revoked: int = Field(description="How many of the live leases would be revoked: all with `drain`, else none.")
    latest_expiry: str | None = Field(description="When the last active lease ends by itself, as they stand now; null: none.")


class ConnectionShown(BaseModel):
    """A connection as it may be read back."""

    plugin_name: str = Field(description="Which engine speaks to the database.")
    plugin_version: str = Field(description="Version of the engine; empty: the installed one.")
    connection_details: dict[str, object] = Field(description="The engine's own fields, without secrets.")
    allowed_roles: list[str] = Field(description="Roles that may use the connection.")
    root_credentials_rotate_statements: list[str] = Field(description="Statements that set the connection's own new password.")
    password_policy: str = Field(description="Name of the policy for generated passwords.")


class RoleShown(BaseModel):
    """A role as it may be read back; options for the engine stand beside these fields."""

    model_config = ConfigDict(extra="allow")

    db_name: str = Field(description="The connection in which users are made.")
    creation_statements: list[str] = Field(description="What makes a user.")
    revocation_statements: list[str] = Field(description="What removes a user; empty: the engine's staged revocation.")
    rollback_statements: list[str] = Field(description="What undoes a failed creation.")
    renew_statements: list[str] = Field(description="What extends a user.")
    default_ttl: int = Field(description="How long a lease lives, in seconds; 0: the broker's default.")
    max_ttl: int = Field(description="How long a lease may live with renewals, in seconds; 0: the broker's maximum.")
    ttl_jitter: int = Field(description="By how many percent each time to live may be shortened, by chance.")
    session_grace: int = Field(
        description="For how long open sessions may go on when the time of their lease is over, in seconds."
    )
    credential_type: str = Field(description="What kind of credential is made.")
    credential_config: dict[str, str] = Field(
        default_factory=dict, description="Settings of the credential, where there are any."
    )
    prepared_users: int = Field(description="How many users are kept ready.")
    reissue: bool = Field(description="Whether the same token gets its living lease again.")
    max_leases: int = Field(description="The most live leases of the role; 0: no limit.")
    lease_owner: str = Field(
        description="Which token a lease belongs to: `token`, the one that asks, or `identity`, the one without a parent above it."
    )


class Missing(BaseModel):
    """Something that a connection's login lacks."""

    need: str = Field(description="What is missing, or what it would be for.")
    remedy: str = Field(description="The statement that gives it, for an administrator of the database; empty: nothing simple.")
    reason: str = Field(description="What the database answered when it was tried; empty where it was only looked up.")
    fatal: bool = Field(description="Whether no user at all can be made without it.")


class Tried(BaseModel):
    """One thing that was done with a user that nobody else got."""

    step: str = Field(description="`made`, `logged in`, `renewed`, or `revoked and proved absent`.")
    ok: bool = Field(description="Whether it worked.")
    milliseconds: float = Field(description="How long it took.")
    error: str = Field(description="Why it did not work.")
    remedy: list[str] = Field(description="Statements that would let it work, where they are known.")


class ConnectionCheck(BaseModel):
    """Whether a connection has what leases need."""

    connection: str = Field(description="Name of the connection.")
    ok: bool = Field(description="Whether nothing is missing and everything worked.")
    username: str = Field(description="The user that was made and removed again; empty where none can be made.")
    missing: list[Missing] = Field(description="What the connection's login lacks, for the roles that there are.")
    steps: list[Tried] = Field(description="What was done with that user, in order.")


class Credentials(BaseModel):
    """What a lease gives."""

    username: str = Field(description="The database user that was made for it.")
    password: str = Field(description="The user's password. It is answered once.")
