"""Operations at `auth/token`."""

from __future__ import annotations

from broker.api.auth import AccessorNamed, AccessorRenew, Auth, RenewSelf, TokenCreate, TokenNamed, TokenRenew, TokenShown
from broker.api.envelope import Keys
from broker.errors import InvalidRequest, PermissionDenied
from broker.identity.tokens import Grant
from broker.model import Token
from broker.secret import Secret
from broker.server.router import Call, Reply, Table
from broker.server.routes.database import listed

TABLE = Table()
_OPTIONAL = ("last_renewal", "last_renewal_time", "period")
"""Fields of a token that Vault leaves out where they say nothing."""


@TABLE.add("update", "auth/token/create", takes=TokenCreate, gives=Auth)
async def create(call: Call) -> Reply:
    """Makes a token."""
    order = call.decode(TokenCreate).supported()
    call.warnings += order.warnings()
    return _granted(await call.services.tokens.create(order, call.caller.token, call.path))


@TABLE.add("update", "auth/token/create-orphan", takes=TokenCreate, gives=Auth)
async def create_orphan(call: Call) -> Reply:
    """Makes a token that outlives its maker."""
    order = call.decode(TokenCreate).supported().model_copy(update={"no_parent": True})
    call.warnings += order.warnings()
    return _granted(await call.services.tokens.create(order, call.caller.token, call.path))


@TABLE.add("read", "auth/token/lookup-self", gives=TokenShown)
@TABLE.add("update", "auth/token/lookup-self", gives=TokenShown)
async def look_up_self(call: Call) -> Reply:
    """Shows the caller's own token."""
    return await _looked_up(call, call.caller.token, call.caller.text)


@TABLE.add("read", "auth/token/lookup", takes=TokenNamed, gives=TokenShown)
@TABLE.add("update", "auth/token/lookup", takes=TokenNamed, gives=TokenShown)
async def look_up(call: Call) -> Reply:
    """Shows a token, the caller's own where none is named."""
    named = call.decode(TokenNamed).token
    text = Secret(named) if named else call.caller.text
    return await _looked_up(call, await call.services.tokens.by_text(text), text)


@TABLE.add("update", "auth/token/lookup-accessor", takes=AccessorNamed, gives=TokenShown)
async def look_up_accessor(call: Call) -> Reply:
    """Shows the token of an accessor."""
    token = await _by_accessor(call, call.decode(AccessorNamed))
    return await _looked_up(call, token, None)


@TABLE.add("list", "auth/token/accessors", gives=Keys)
async def list_accessors(call: Call) -> Reply:
    """The accessors of all tokens."""
    return listed(await call.services.tokens.accessors())


@TABLE.add("update", "auth/token/renew-self", takes=RenewSelf, gives=Auth)
async def renew_self(call: Call) -> Reply:
    """Gives the caller's own token more time."""
    increment_s = call.decode(RenewSelf).increment
    return _granted(await call.services.tokens.renew(call.caller.token, call.caller.text, increment_s))


@TABLE.add("update", "auth/token/renew", takes=TokenRenew, gives=Auth)
async def renew(call: Call) -> Reply:
    """Gives a token more time."""
    order = call.decode(TokenRenew)
    text = Secret(order.required_token())
    token = await call.services.tokens.by_text(text)
    if token is None:
        raise InvalidRequest("token not found")
    return _granted(await call.services.tokens.renew(token, text, order.increment))


@TABLE.add("update", "auth/token/renew-accessor", takes=AccessorRenew, gives=Auth)
async def renew_accessor(call: Call) -> Reply:
    """Gives the token of an accessor more time."""
    order = call.decode(AccessorRenew)
    return _granted(await call.services.tokens.renew(await _by_accessor(call, order), None, order.increment))


@TABLE.add("update", "auth/token/revoke-self")
async def revoke_self(call: Call) -> Reply:
    """Ends the caller's own token, its children and their leases."""
    await call.services.tokens.revoke(call.caller.token)
    return Reply()


@TABLE.add("update", "auth/token/revoke", takes=TokenNamed)
async def revoke(call: Call) -> Reply:
    """Ends a token, its children and their leases; one that is not there counts as ended."""
    token = await call.services.tokens.by_text(Secret(call.decode(TokenNamed).required_token()))
    if token is not None:
        await call.services.tokens.revoke(token)
    return Reply()


@TABLE.add("update", "auth/token/revoke-accessor", takes=AccessorNamed)
async def revoke_accessor(call: Call) -> Reply:
    """Ends the token of an accessor, its children and their leases."""
    token = await call.services.tokens.by_accessor(call.decode(AccessorNamed).required_accessor())
    if token is None:
        return Reply(warnings=["No token found with this accessor"])
    await call.services.tokens.revoke(token)
    return Reply()


@TABLE.add("update", "auth/token/revoke-orphan", takes=TokenNamed)
async def revoke_orphan(call: Call) -> Reply:
    """Ends a token and its leases; its children live on."""
    token = await call.services.tokens.by_text(Secret(call.decode(TokenNamed).required_token()))
    if token is None:
        raise InvalidRequest("token to revoke not found")
    await call.services.tokens.revoke_orphan(token)
    return Reply()


def _granted(grant: Grant) -> Reply:
    return Reply(grant=grant, warnings=grant.warnings)


async def _by_accessor(call: Call, named: AccessorNamed) -> Token:
    token = await call.services.tokens.by_accessor(named.required_accessor())
    if token is None:
        raise InvalidRequest("invalid accessor")
    return token


async def _looked_up(call: Call, token: Token | None, text: Secret | None) -> Reply:
    if token is None:
        raise PermissionDenied("bad token")
    return Reply(data=_fields(await call.services.tokens.shown(token, text)))


def _fields(shown: TokenShown) -> dict[str, object]:
    return shown.model_dump(exclude={field for field in _OPTIONAL if getattr(shown, field) is None})
