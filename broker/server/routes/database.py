"""Operations at `database/`: connections, roles, credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.api.database import (
    ConnectionCheck,
    ConnectionDeletion,
    ConnectionOutlook,
    ConnectionShown,
    ConnectionWrite,
    Credentials,
    Deletion,
    Held,
    Missing,
    RoleOutlook,
    RoleShown,
    RoleWrite,
    Tried,
)
from broker.api.envelope import Keys
from broker.api.fields import short_text
from broker.audit.entry import AuditResponse, rfc3339
from broker.catalog.roles import IDENTITY
from broker.errors import NotFound, UserRemains
from broker.leases.canary import Step
from broker.leases.issue import Ask, Issued
from broker.leases.outlook import Outlook
from broker.leases.trial import Check
from broker.model import Token
from broker.server.mounts import DATABASE, mount_of
from broker.server.router import Access, Call, Reply, Table

TABLE = Table()
_MOUNT = mount_of(DATABASE)
_DRAINING = Reply(status=202)
_DELETED = (200, 202, 204)
"""After a dry run; where leases are drained in the background; else."""


@TABLE.add(
    "update",
    "database/config/{name}",
    exists=lambda services, name: services.catalog.connection_shown(name) is not None,
    takes=ConnectionWrite,
)
async def write_connection(call: Call) -> Reply:
    """Makes or changes a connection."""
    fields = call.decode(ConnectionWrite)
    return Reply(warnings=await call.services.trials.write_connection(call.name, fields, call.caller.token.number))


@TABLE.add("read", "database/config/{name}", gives=ConnectionShown)
async def read_connection(call: Call) -> Reply:
    """Shows a connection without its secrets."""
    return _found(call.services.catalog.connection_shown(call.name))


@TABLE.add("list", "database/config", gives=Keys)
async def list_connections(call: Call) -> Reply:
    """The names of the connections."""
    return listed(call.services.catalog.connection_names())


@TABLE.add("delete", "database/config/{name}", takes=ConnectionDeletion, gives=ConnectionOutlook, statuses=_DELETED)
async def delete_connection(call: Call) -> Reply:
    """Deletes a connection; its leases live on to their end, are drained, or forgotten. Or says what that would do."""
    how = call.decode(ConnectionDeletion).understood()
    if how.dry_run:
        return _connection_outlook(call.name, await call.services.outlooks.of_connection(call.name), how)
    if how.drain:
        await call.services.drainer.delete_connection(call.name)
        return _DRAINING
    numbers = call.services.catalog.numbers_of(call.name)
    await call.services.catalog.delete_connection(call.name)
    return left_behind(await call.services.revoker.forget_connections(numbers) if how.force else 0)


@TABLE.add("update", "database/reset/{name}")
async def reset_connection(call: Call) -> Reply:
    """Closes a connection's sessions and opens new ones."""
    await call.services.catalog.reset_connection(call.name)
    return Reply()


@TABLE.add("update", "database/check/{name}", gives=ConnectionCheck)
async def check_connection(call: Call) -> Reply:
    """Says what a connection lacks: rights are looked up and tried, then a user is made, logs in, is renewed and revoked."""
    return _checked(call.name, await call.services.trials.check(call.name, call.caller.token.number))


@TABLE.add(
    "update",
    "database/roles/{name}",
    exists=lambda services, name: services.catalog.role_shown(name) is not None,
    takes=RoleWrite,
)
async def write_role(call: Call) -> Reply:
    """Makes or changes a role."""
    fields = call.decode(RoleWrite)
    return Reply(warnings=await call.services.trials.write_role(call.name, fields, call.caller.token.number))


@TABLE.add("read", "database/roles/{name}", gives=RoleShown)
async def read_role(call: Call) -> Reply:
    """Shows a role."""
    return _found(call.services.catalog.role_shown(call.name))


@TABLE.add("list", "database/roles", gives=Keys)
async def list_roles(call: Call) -> Reply:
    """The names of the roles."""
    return listed(call.services.catalog.role_names())


@TABLE.add("delete", "database/roles/{name}", takes=Deletion, gives=RoleOutlook, statuses=_DELETED)
async def delete_role(call: Call) -> Reply:
    """Deletes a role; its leases live on to their end, or are drained. Or says what that would do."""
    how = call.decode(Deletion).understood()
    if how.dry_run:
        return _role_outlook(call.name, await call.services.outlooks.of_role(call.name), how)
    if how.drain:
        await call.services.drainer.delete_role(call.name)
        return _DRAINING
    await call.services.catalog.delete_role(call.name)
    return Reply()


@TABLE.add("read", "database/creds/{name}", access=Access.ISSUE, gives=Credentials)
async def read_credentials(call: Call) -> Reply:
    """Issues a lease: a database user that lives as long as it."""
    name, token = call.name, call.caller.token
    role = call.services.catalog.role(name)
    owner = await call.services.tokens.head(token) if role is not None and role.lease_owner == IDENTITY else token
    issued = await call.services.issuer.issue(_ask(call, name, owner))
    return Reply(
        lease_id=issued.lease_id,
        renewable=True,
        lease_duration_s=issued.ttl_s,
        data={"username": issued.username, "password": issued.password.reveal()},
        warnings=issued.warnings,
    )


def _role_outlook(name: str, outlook: Outlook, how: Deletion) -> Reply:
    shown = RoleOutlook(
        role=name,
        exists=outlook.exists,
        connection=outlook.connection,
        live_leases=outlook.holdings.live,
        leases_revoked=outlook.holdings.live if how.drain else 0,
        prepared_users=outlook.holdings.prepared,
        latest_expiry=_time(outlook.last_end_ms),
    )
    return Reply(data=shown.model_dump())


def _connection_outlook(name: str, outlook: Outlook, how: Deletion) -> Reply:
    shown = ConnectionOutlook(
        connection=name,
        exists=outlook.exists,
        roles={role: Held(live_leases=held.live, prepared_users=held.prepared) for role, held in outlook.roles.items()},
        live_leases=outlook.holdings.live,
        leases_revoked=outlook.holdings.live if how.drain else 0,
        prepared_users=outlook.holdings.prepared,
        latest_expiry=_time(outlook.last_end_ms),
    )
    return Reply(data=shown.model_dump())


def _checked(name: str, check: Check) -> Reply:
    shown = ConnectionCheck(
        connection=name,
        ok=check.passed,
        username=check.flight.username if check.flight else "",
        missing=[Missing(need=lack.need, remedy=lack.remedy, reason=lack.reason, fatal=lack.fatal) for lack in check.lacks],
        steps=[_tried(step) for step in check.flight.steps] if check.flight else [],
    )
    return Reply(data=shown.model_dump())


def _tried(step: Step) -> Tried:
    return Tried(
        step=step.name,
        ok=step.error is None,
        milliseconds=round(step.took_ms, 1),
        error="" if step.error is None else str(step.error),
        remedy=list(step.error.remedy) if isinstance(step.error, UserRemains) else [],
    )


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def _ask(call: Call, role: str, owner: Token) -> Ask:
    passage, clock = call.caller, call.services.clock
    idempotency_key = short_text(call.idempotency_key, "Idempotency-Key") if call.idempotency_key else ""

    def response_entry(issued: Issued) -> bytes:
        response = AuditResponse(
            mount=_MOUNT,
            lease_id=issued.lease_id,
            data={"username": issued.username, "password": issued.password},
            warnings=[*issued.warnings, *call.warnings],
        )
        return passage.response_entry(clock.now_ms(), response)

    token = passage.token
    return Ask(
        role=role,
        mount="database",
        token=token.number,
        owner=owner,
        display_name=token.facts.display_name,
        idempotency_key=idempotency_key,
        # Last: from here on it is the issuer that records it.
        request_entry=passage.hand_over(),
        response_entry=response_entry,
    )


def left_behind(users: int) -> Reply:
    """The answer once the leases of so many users were taken off the books, whatever their database says."""
    if not users:
        return Reply()
    told = (
        f"{users} users could not be removed and may still log in until their passwords expire; their leases are off the books. "
        "The audit log names them, and `broker reconcile` finds and ends them when the database is back"
    )
    return Reply(warnings=[told])


def listed(keys: Sequence[str]) -> Reply:
    """Keys as a list; none is 404, as in Vault."""
    if not keys:
        raise NotFound
    return Reply(data={"keys": keys})


def _found(shown: Mapping[str, object] | None) -> Reply:
    if shown is None:
        raise NotFound
    return Reply(data=shown)
