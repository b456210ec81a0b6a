"""Trial: a connection is checked when somebody asks, and a role is rehearsed when it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from broker.api.database import ConnectionWrite, RoleWrite
from broker.catalog.connections import Connection, same_address
from broker.catalog.roles import Role
from broker.duration import format_seconds
from broker.engines.protocol import Lack
from broker.errors import BrokerError, InstructionsFailed, InvalidRequest, LimitExceeded, PermissionDenied, UserRemains
from broker.leases.canary import Canary, Flight, Step
from broker.leases.parts import Parts
from broker.model import TokenNumber

_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """What a connection lacks, and how a user fared there; None where none can be made."""

    lacks: Sequence[Lack]
    flight: Flight | None

    @property
    def passed(self) -> bool:
        """Whether nothing is missing and everything worked."""
        return not self.lacks and self.flight is not None and self.flight.failure is None


class Trials:
    """Tries out connections and roles, with users that nobody else gets."""

    def __init__(self, parts: Parts, canary: Canary) -> None:
        self._parts = parts
        self._canary = canary

    async def check(self, name: str, token: TokenNumber) -> Check:
        """The connection's rights, looked up and tried, for it and its roles; then a user is made, logs in, is renewed and revoked.

        Raises `InvalidRequest` where there is no such connection or its engine can't tell, `DatabaseUnavailable`.
        """
        catalog = self._parts.catalog
        connection = catalog.connection(name)
        engine = await catalog.engine_for(connection)
        if not engine.traits.rehearses:
            raise InvalidRequest(f"connection {name}: its engine offers no check")
        lacks = await engine.preflight([role.terms for role in catalog.roles() if role.db_name == name])
        if any(lack.fatal for lack in lacks):
            return Check(lacks, None)
        return Check(lacks, await self._canary.fly(connection, engine, engine.plain_terms(), token))

    async def write_connection(self, name: str, fields: ConnectionWrite, token: TokenNumber) -> list[str]:
        """Keeps a connection, and answers warnings; where it was verified and leads elsewhere than before, a user was tried there too.

        Raises what `Catalog.write_connection` raises. What fails of the user is a warning: the connection is kept.
        """
        catalog = self._parts.catalog
        old = catalog.connection(name) if name in catalog.connection_names() else None
        warnings = await catalog.write_connection(name, fields)
        kept = catalog.connection(name)
        if not fields.verify_connection or (old is not None and same_address(old, kept)):
            return warnings
        return [*warnings, *await self._tried(kept, token)]

    async def _tried(self, connection: Connection, token: TokenNumber) -> Sequence[str]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                engine = await self._parts.catalog.engine_for(connection)
                if not engine.traits.rehearses:
                    return ()
                flight = await self._canary.fly(connection, engine, engine.plain_terms(), token)
        except TimeoutError:
            return [f"check: no user was tried to the end: it took over {_WITHIN_S:g} s"]
        except PermissionDenied:
            raise
        except BrokerError as error:
            return [f"check: no user was tried: {error}"]
        return [_warning("check", step) for step in flight.steps if step.error is not None]

    async def write_role(self, name: str, fields: RoleWrite, token: TokenNumber) -> list[str]:
        """Keeps a role whose instructions work, and answers warnings. See `Catalog.write_role`.

        Where the database can't be asked now, or there is no such connection yet, it is kept all the same. Raises `InvalidRequest` that
        names the instruction and the place which failed.
        """
        catalog = self._parts.catalog
        old, wanted = catalog.role(name), catalog.role_wanted(name, fields)
        changed = old is None or (old.terms, old.db_name) != (wanted.terms, wanted.db_name)
        warnings = self._doubts(wanted)
        if fields.rehearse and changed and wanted.db_name in catalog.connection_names():
            warnings += await self._rehearsed(wanted, catalog.connection(wanted.db_name), token)
        return [*await catalog.write_role(name, fields), *warnings]

    def _doubts(self, role: Role) -> list[str]:
        """What keeps a role that is fine in itself from giving leases, or such leases as it says."""
        catalog, most_s = self._parts.catalog, self._parts.settings.max_ttl
        doubts = [
            f"{field} of {format_seconds(asked_s)} is over leases.max_ttl of {format_seconds(most_s)}, which its leases get instead"
            for field, asked_s in (("default_ttl", role.default_ttl_s), ("max_ttl", role.max_ttl_s))
            if asked_s > most_s
        ]
        if role.db_name not in catalog.connection_names():
            doubts.append(f"connection {role.db_name} does not exist yet; until it does, the role gives no leases")
        elif not catalog.connection(role.db_name).allows(role.name):
            doubts.append(
                f"connection {role.db_name} does not allow the role; until its allowed_roles has it, it gives no leases"
            )
        return doubts

    async def _rehearsed(self, role: Role, connection: Connection, token: TokenNumber) -> Sequence[str]:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await self._rehearse(role, connection, token)
        except InstructionsFailed as error:
            # What seems to be a misspelt field may be the very reason.
            why = "; ".join([str(error), *self._parts.catalog.check_terms(role)])
            raise InvalidRequest(f"{why}; the role was not written (rehearse=false writes it untried)") from None
        except TimeoutError:
            return [f"not rehearsed to the end: connection {connection.name} took over {_WITHIN_S:g} s"]
        except (InvalidRequest, PermissionDenied):
            raise
        except BrokerError as error:
            return [f"not rehearsed: {error}"]

    async def _rehearse(self, role: Role, connection: Connection, token: TokenNumber) -> Sequence[str]:
        engine = await self._parts.catalog.engine_for(connection)
        if not engine.traits.rehearses or not (role.terms.creation or role.terms.options):
            return ()
        rehearsal = await engine.rehearse(role.terms)
        if not rehearsal.removable:
            return rehearsal.warnings
        try:
            flight = await self._canary.fly(connection, engine, role.terms, token)
        except LimitExceeded as error:
            return [*rehearsal.warnings, f"not rehearsed to the end: {error}"]
        return [*rehearsal.warnings, *_judged(flight)]


def _judged(flight: Flight) -> Sequence[str]:
    """Warnings about what is not for the role's instructions to put right. Raises `InstructionsFailed` for what is."""
    warnings = []
    for step in flight.steps:
        if isinstance(step.error, InstructionsFailed):
            raise step.error
        if step.error is not None:
            warnings.append(_warning("rehearsal", step))
    return warnings


def _warning(occasion: str, step: Step) -> str:
    remedy = step.error.remedy if isinstance(step.error, UserRemains) else ()
    return "; ".join([f"{occasion}: a user was not {step.name}: {step.error}", *remedy])
