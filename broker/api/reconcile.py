"""What travels to and from `sys/reconcile`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from broker.api.fields import LenientBool, ShortText, Wire
from broker.errors import InvalidRequest


class ReconcileOrder(Wire):
    """A request to compare databases and store."""

    connection: ShortText = Field("", description="The connection to compare; empty: all of them.")
    dry_run: LenientBool = Field(default=True, description="Whether to change nothing and only tell what differs.")
    drop_unknown: LenientBool = Field(
        default=False,
        description="Whether to revoke users, too, that the store does not know or was made to forget; needs `dry_run` to be false.",
    )

    def checked(self) -> ReconcileOrder:
        """The order itself. Raises `InvalidRequest` where it contradicts itself."""
        if self.drop_unknown and self.dry_run:
            raise InvalidRequest("drop_unknown: a dry run drops nobody; allowed with dry_run=false alone")
        return self


class Difference(BaseModel):
    """One user about whom database and store differ."""

    kind: str = Field(description="How: `unknown_user`, `user_back`, `missing_user` ...")
    username: str = Field(description="The user's name in the database.")
    lease_id: str = Field(description="The lease that it belongs to; empty where the store has none.")


class ConnectionReconciled(BaseModel):
    """What was found on one connection."""

    connection: str = Field(description="Name of the connection.")
    users: int = Field(description="Users of the database that were compared.")
    leases: int = Field(description="Leases of the store that were compared.")
    found: dict[str, int] = Field(description="How many differ, by kind.")
    amended: dict[str, int] = Field(description="About how many of them something was done, by kind.")
    differences: list[Difference] = Field(
        description="The first of them: a hundred of a connection, a thousand in all, at most."
    )
    left_out: int = Field(description="How many differ beyond those.")
    sessions_ended: int = Field(description="Sessions of users that no longer exist, which were ended; a dry run ends none.")
    sessions_left: int = Field(
        description="Those that go on: all that a dry run found, and what another could not end, which is among the `concerns`."
    )
    concerns: list[str] = Field(description="What is wrong in the database, or soon will be, in sentences.")
    error: str = Field(description="Why it was not compared to the end; empty where it was.")


class Reconciled(BaseModel):
    """How a run goes, or went."""

    state: str = Field(description="`idle` (none was asked for yet), `running` or `done`.")
    dry_run: bool = Field(description="Whether it changes nothing.")
    drop_unknown: bool = Field(description="Whether it revokes users that the store does not know.")
    started: str | None = Field(description="When it began (RFC 3339).")
    ended: str | None = Field(description="When it ended (RFC 3339); null while it goes on.")
    expected: int = Field(description="About how many users and leases there are to compare.")
    compared: int = Field(description="How many have been compared.")
    connections: list[ConnectionReconciled] = Field(description="What was found, by connection.")
