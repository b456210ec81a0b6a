"""What travels to and from `auth/token`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from broker.api.fields import CommaList, DurationSeconds, KeyValues, LenientBool, LenientInt, ShortText, Wire, comma_list
from broker.errors import InvalidRequest

_UNASSIGNABLE = "response-wrapping"
"""In Vault the policy of wrapping tokens alone."""


def _policies(value: object) -> list[str]:
    """Names of policies. Where all that were sent are empty, as of a script's unset variable, that is no wish for the caller's."""
    return comma_list(value, "policies") or ([] if value == [] else ["default"])


Policies = Annotated[CommaList, BeforeValidator(_policies)]


class TokenCreate(Wire):
    """A request for a new token."""

    id: ShortText = Field("", description="A token text of the caller's own; not offered, tokens are made by the broker.")
    policies: Policies = Field(
        default_factory=list,
        description="The policies of the token; left out, or an empty list, takes the caller's. Names that are empty give `default` alone.",
    )
    meta: KeyValues = Field(default_factory=dict, description="Texts that the audit log shows with the token.")
    no_parent: LenientBool = Field(default=False, description="Whether the token outlives its maker; root only.")
    no_default_policy: LenientBool = Field(default=False, description="Whether the policy `default` is left out.")
    renewable: LenientBool = Field(default=True, description="Whether the token can be renewed.")
    ttl: DurationSeconds = Field(0, description="How long the token lives, in seconds; 0 takes the broker's default.")
    lease: DurationSeconds = Field(0, description="Old name of `ttl`.")
    explicit_max_ttl: DurationSeconds = Field(
        0, description="The longest that the token may live with renewals; 0: no own limit."
    )
    period: DurationSeconds = Field(0, description="Makes a token that each renewal lets live this long again; root only.")
    display_name: ShortText = Field("token", description="A name for the audit log and for user names.")
    num_uses: LenientInt = Field(0, ge=0, le=1 << 31, description="How many requests the token is good for; 0: no limit.")
    type: ShortText = Field("service", description="Kind of token: `service`.")
    entity_alias: ShortText = Field("", description="Not used, with a warning: there are no token roles.")

    def supported(self) -> TokenCreate:
        """The request itself. Raises `InvalidRequest` for what is not offered."""
        if self.id:
            raise InvalidRequest("id: not supported; tokens are made by the broker")
        if self.type not in ("", "service"):
            raise InvalidRequest("type: not supported; allowed is service")
        if any(policy.lower() == _UNASSIGNABLE for policy in self.policies):
            raise InvalidRequest(f'cannot assign policy "{_UNASSIGNABLE}"')
        return self

    def warnings(self) -> list[str]:
        """What the caller asks for and does not get."""
        return ["entity_alias is not used: there are no token roles"] if self.entity_alias else []


class TokenNamed(Wire):
    """A request about the token that it names."""

    token: ShortText = Field("", description="The token; the caller's own where it is left out of a lookup.")

    def required_token(self) -> str:
        """The token's text. Raises `InvalidRequest` when none was given."""
        if not self.token:
            raise InvalidRequest("missing token ID")
        return self.token


class AccessorNamed(Wire):
    """A request about the token that an accessor stands for."""

    accessor: ShortText = Field("", description="The token's accessor.")

    def required_accessor(self) -> str:
        """The accessor. Raises `InvalidRequest` when none was given."""
        if not self.accessor:
            raise InvalidRequest("missing accessor")
        return self.accessor


class RenewSelf(Wire):
    """A request for more time for the caller's own token."""

    increment: DurationSeconds = Field(
        0, description="How long the token shall live from now on, in seconds; 0 asks for what it had."
    )


class TokenRenew(TokenNamed, RenewSelf):
    """A request for more time for a token."""


class AccessorRenew(AccessorNamed, RenewSelf):
    """A request for more time for the token of an accessor."""


class Auth(BaseModel):
    """A token as the answer that made or renewed it shows it."""

    client_token: str = Field(description="The token's text; empty where it was renewed by its accessor.")
    accessor: str = Field(description="Names the token without giving its rights.")
    policies: list[str] = Field(description="Its policies.")
    token_policies: list[str] = Field(description="The same.")
    metadata: dict[str, str] | None = Field(description="The texts given when it was made.")
    lease_duration: int = Field(description="How long it lives from now on, in seconds; 0 for ever.")
    renewable: bool = Field(description="Whether it can be renewed.")
    entity_id: str = Field("", description="Always empty: there are no entities.")
    token_type: str = Field("service", description="Kind of token.")
    orphan: bool = Field(description="Whether it has no parent to end with.")
    mfa_requirement: None = Field(None, description="Always null.")
    num_uses: int = Field(description="How many requests it is good for; 0: no limit.")


class TokenShown(BaseModel):
    """A token as lookup shows it."""

    id: str = Field(description="The token's text; empty where it was looked up by its accessor.")
    accessor: str = Field(description="Names the token without giving its rights.")
    policies: list[str] = Field(description="Its policies.")
    path: str = Field(description="The path that made it.")
    meta: dict[str, str] | None = Field(description="The texts given when it was made.")
    display_name: str = Field(description="Its name in the audit log.")
    num_uses: int = Field(description="How many requests it is still good for; 0: no limit.")
    orphan: bool = Field(description="Whether it has no parent to end with.")
    creation_time: int = Field(description="When it was made, in Unix seconds.")
    creation_ttl: int = Field(description="The life that it was made with, in seconds.")
    expire_time: str | None = Field(description="When it ends unless it is renewed (RFC 3339).")
    ttl: int = Field(description="How long it lives from now on, in seconds; 0 for ever.")
    explicit_max_ttl: int = Field(description="The longest it may live with renewals, in seconds; 0: no own limit.")
    entity_id: str = Field("", description="Always empty: there are no entities.")
    type: str = Field("service", description="Kind of token.")
    renewable: bool = Field(description="Whether it can be renewed.")
    issue_time: str = Field(description="When it was made (RFC 3339).")
    last_renewal: str | None = Field(None, description="When it was last renewed (RFC 3339).")
    last_renewal_time: int | None = Field(None, description="The same in Unix seconds.")
    period: int | None = Field(None, description="How long each renewal lets it live, in seconds.")
