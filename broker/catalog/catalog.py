"""Connections and roles, as the store's documents have them, and the engine of each connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from weakref import WeakValueDictionary

from msgspec.structs import replace

from broker.api.database import ConnectionWrite, RoleWrite
from broker.catalog import connections, roles
from broker.catalog.cache import Cache
from broker.catalog.connections import Connection
from broker.catalog.engines import OpenEngines
from broker.catalog.roles import Role
from broker.engines.guard import Guard
from broker.engines.protocol import Lack
from broker.engines.registry import Registry
from broker.errors import EngineError, InvalidRequest
from broker.model import ConnectionNumber, Document, Json, LeaseState, Terms
from broker.store.protocol import Store
from broker.store.words import DocumentChange

_LINGER_MS = 600_000
"""How long a deleted connection is kept at least: an issue that began before may still write a lease down, which needs it."""


class Catalog:
    """Which connections and roles exist, and the open engine of each connection."""

    def __init__(self, store: Store, registry: Registry, engines: OpenEngines) -> None:
        self._store = store
        self.registry = registry
        """Which engines are installed."""
        self._engines = engines
        self._cache = Cache()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def refresh(self) -> None:
        """Takes in what changed in the store since the last look."""
        for document in await self._store.changes_since(self._cache.revision):
            self._take_in(document)

    async def close(self) -> None:
        """Closes every engine."""
        await self._engines.close_all()

    # connections ----------------------------------------------------------------------------------------------------

    def connection_names(self) -> list[str]:
        """The names of the connections, sorted."""
        return sorted(self._cache.connections)

    def connections(self) -> Sequence[Connection]:
        """Every connection that may still have leases, deleted ones among them."""
        return [*self._cache.connections.values(), *self._cache.retired.values()]

    def numbers_of(self, name: str) -> Sequence[ConnectionNumber]:
        """The numbers of the connection of that name, and of former ones that may still have leases."""
        return [connection.number for connection in self.connections() if connection.name == name]

    def connection(self, name: str) -> Connection:
        """The connection of that name. Raises `InvalidRequest` in Vault's words."""
        found = self._cache.connections.get(name)
        if found is None:
            raise InvalidRequest(f'failed to find entry for connection with name: "{name}"')
        return found

    def connection_shown(self, name: str) -> dict[str, Json] | None:
        """The connection as it may be read back, without its secrets; None when there is none."""
        found = self._cache.connections.get(name)
        if found is None:
            return None
        plugin = self.registry.plugin(found.plugin_name)
        return {
            "plugin_name": found.plugin_name,
            "plugin_version": found.plugin_version,
            "connection_details": plugin.shown(found.details),
            "allowed_roles": list(found.allowed_roles),
            "root_credentials_rotate_statements": list(found.root_rotation_statements),
            "password_policy": found.password_policy,
        }

    async def write_connection(self, name: str, fields: ConnectionWrite) -> list[str]:
        """Keeps a connection, new or changed, and answers warnings; connects first unless told not to.

        A connection that can't be verified changes nothing. One that turns out to be another cluster gets a new number; the
        former one is kept for its leases, as if it had been deleted. Goes on when the caller leaves. Raises `InvalidRequest`.
        """
        return await asyncio.shield(self._write_connection(name, fields))

    async def delete_connection(self, name: str, beside: Sequence[DocumentChange] = ()) -> None:
        """Takes a connection off the list, with what is written `beside` it in one commit.

        Its leases are still revoked over it; `purge_retired` lets go of it after the last.
        """
        async with self._turn(name):
            await self._change([DocumentChange(connections.KIND, name), *beside])

    async def reset_connection(self, name: str) -> None:
        """Closes the connection's sessions and opens new ones. Raises `InvalidRequest`, `DatabaseUnavailable`.

        A server that was refused because of its timeline is accepted from then on: it counts as another one, on which all leases are
        checked. Where the connection was deleted, the former ones of that name are meant, as long as they have leases.
        """
        current = self._cache.connections.get(name)
        former = [connection for connection in self._cache.retired.values() if connection.name == name]
        named = former if current is None else [current]
        if not named:
            self.connection(name)
        results = await asyncio.gather(*(self._reset(connection) for connection in named), return_exceptions=True)
        for failure in results:
            # Each was tried, whatever became of the others.
            if failure is not None:
                raise failure

    async def reopen(self, connection: Connection) -> Guard:
        """The engine with new sessions, after the others were closed. Raises what `engine_for` raises."""
        await self._engines.close(connection.number)
        return await self.engine_for(connection)

    async def purge_retired(self) -> None:
        """Erases deleted connections that no lease needs any longer, and closes engines that were replaced. Once a minute."""
        await self._engines.close_replaced()
        for connection in self._cache.retired_until(self._store.now_ms() - _LINGER_MS):
            tally = await self._store.tally(connection.number)
            if any(count for state, count in tally.by_state.items() if state is not LeaseState.GONE):
                continue
            line = await self._store.delete_document(connections.LINE, str(connection.number))
            if line is not None:
                await self._store.purge_document(connections.LINE, line.number)
            await self._store.purge_document(connections.KIND, connection.number)
            await self._engines.close(connection.number)
            self._cache.forget_retired(connection.number)

    async def engine(self, number: ConnectionNumber) -> Guard:
        """The connected engine of a connection. Raises `DatabaseUnavailable`, `EngineMissing`."""
        return await self.engine_for(self._by_number(number))

    async def engine_for(self, connection: Connection) -> Guard:
        """The connected engine of a connection at hand. Raises `DatabaseUnavailable`, `EngineMissing`.

        It is on record where the connection leads before anybody gets it: no user is made at a place that nobody could name later.
        """
        engine = await self._engines.get(connection)
        if not connection.cluster or connection.proven is not None:
            await self._note_cluster(connection)
        return engine

    async def note_timeline(self, connection: Connection, timeline: str, addresses: Sequence[str] = ()) -> None:
        """Keeps the timeline on which the connection's leases were checked, and by which addresses its server was reached."""
        async with self._turn(connection.name):
            current = self._cache.by_number(connection.number)
            if current is None:
                return
            kept = replace(current, timeline=timeline, addresses=tuple(addresses))
            if kept == current:
                return
            if current.deleted:
                change = DocumentChange(connections.LINE, str(current.number), connections.line_to_body(kept))
            else:
                change = DocumentChange(connections.KIND, current.name, connections.to_body(kept))
            await self._change([change])

    def in_use(self, number: ConnectionNumber) -> bool:
        """Whether the connection's engine has been opened by this process."""
        return self._engines.opened(number)

    # roles ----------------------------------------------------------------------------------------------------------

    def role_names(self) -> list[str]:
        """The names of the roles, sorted."""
        return sorted(self._cache.roles)

    def roles(self) -> Sequence[Role]:
        """Every role."""
        return list(self._cache.roles.values())

    def role(self, name: str) -> Role | None:
        """The role of that name, if there is one."""
        return self._cache.roles.get(name)

    def role_shown(self, name: str) -> dict[str, object] | None:
        """The role as Vault's API reads it back; None when there is none."""
        found = self._cache.roles.get(name)
        return None if found is None else roles.shown(found)

    def role_wanted(self, name: str, fields: RoleWrite) -> Role:
        """What the role would be after `write_role`. Raises what that raises."""
        wanted = roles.merged(self._cache.roles.get(name), name, fields)
        self.check_terms(wanted)
        return wanted

    def check_terms(self, role: Role) -> list[str]:
        """Warnings about what a role says to its engine, as far as its connection exists. Raises `InvalidRequest` naming the field."""
        warnings = []
        if role.credential_config.get("password_policy"):
            warnings.append("credential_config.password_policy is kept but not used yet: passwords follow the built-in rule")
        connection = self._cache.connections.get(role.db_name)
        if connection is not None:
            warnings.extend(self._engines.peek(connection).check_terms(role.terms))
        return warnings

    async def write_role(self, name: str, fields: RoleWrite) -> list[str]:
        """Keeps a role, new or changed, and answers warnings. Raises `InvalidRequest` naming the field.

        An unchanged role keeps its revision, so that its prepared users stay. The engine checks the terms where the
        connection exists already; Vault allows to write the role first.
        """
        old = self._cache.roles.get(name)
        wanted = roles.merged(old, name, fields)
        warnings = self.check_terms(wanted)
        if old is None or roles.to_body(old) != roles.to_body(wanted):
            self._take_in(await self._store.put_document(roles.KIND, name, roles.to_body(wanted)))
        return warnings

    async def delete_role(self, name: str, beside: Sequence[DocumentChange] = ()) -> None:
        """Deletes a role, with what is written `beside` it in one commit.

        Its leases live on to their end; its prepared users are removed in the background.
        """
        await self._change([DocumentChange(roles.KIND, name), *beside])

    async def _write_connection(self, name: str, fields: ConnectionWrite) -> list[str]:
        async with self._turn(name):
            old = self._cache.connections.get(name)
            wanted = connections.merged(old, name, fields)
            warnings = list(self.registry.plugin(wanted.plugin_name).check_config(wanted.details))
            if wanted.password_policy:
                warnings.append("password_policy is kept but not used yet: passwords follow the built-in rule")
            engine = self._engines.build(wanted)
            try:
                if fields.verify_connection:
                    wanted = connections.verified(wanted, await _found(engine, wanted))
                    warnings += await _lacks(
                        engine, [role.terms for role in self._cache.roles.values() if role.db_name == name]
                    )
                else:
                    wanted = connections.unverified(old, wanted)
                changes = []
                if old is not None and connections.moved(old, wanted):
                    changes = _retiring(old)
                    wanted = replace(
                        wanted,
                        proven=None,
                        timeline="",
                        addresses=(),
                        cluster=wanted.cluster if fields.verify_connection else "",
                    )
                    warnings.append(
                        f"connection {name} leads to another database cluster now; its former leases are still ended at the former one"
                    )
                changes.append(DocumentChange(connections.KIND, name, connections.to_body(wanted)))
                changed = await self._change(changes)
            except BaseException:
                await engine.close()
                raise
            kept = replace(wanted, number=ConnectionNumber(changed[-1].number), revision=changed[-1].revision)
            self._engines.put(kept, engine, opened=fields.verify_connection)
            return warnings

    async def _note_cluster(self, connection: Connection) -> None:
        """Keeps where the connection was found to lead, while it is still that connection."""
        async with self._turn(connection.name):
            current = self._cache.connections.get(connection.name)
            found = self._engines.cluster(connection.number)
            if not found or current is None or current.number != connection.number:
                return
            if current.cluster and current.proven is None:
                return
            kept = connections.verified(current, found)
            self._take_in(await self._store.put_document(connections.KIND, current.name, connections.to_body(kept)))

    def _turn(self, name: str) -> asyncio.Lock:
        """Whoever changes a connection holds this from its reading to its writing."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def _reset(self, connection: Connection) -> None:
        engine = await self.reopen(replace(connection, timeline=""))
        if connections.refusal(connection, await engine.health()):
            await self.note_timeline(connection, connections.STEPPED_BACK)

    def _by_number(self, number: ConnectionNumber) -> Connection:
        found = self._cache.by_number(number)
        if found is None:
            raise InvalidRequest(f"connection {number} does not exist any longer")
        return found

    async def _change(self, changes: Sequence[DocumentChange]) -> Sequence[Document]:
        changed = await self._store.change_documents(changes)
        for document in changed:
            self._take_in(document)
        return changed

    def _take_in(self, document: Document) -> None:
        self._cache.take_in(document, self._store.now_ms())


def _retiring(old: Connection) -> list[DocumentChange]:
    """Deletes the connection in the state in which its leases can be ended over it."""
    kept = connections.former(old)
    written = [] if kept is old else [DocumentChange(connections.KIND, old.name, connections.to_body(kept))]
    return [*written, DocumentChange(connections.KIND, old.name)]


async def _lacks(engine: Guard, terms: Sequence[Terms]) -> list[str]:
    """What the connection's login lacks, each with what gives it. Raises `InvalidRequest` where no user could be made."""
    if not engine.traits.rehearses:
        return []
    try:
        lacks = await engine.preflight(terms)
    except EngineError as error:
        return [f"the login's rights could not be checked: {error}"]
    fatal = [_told(lack) for lack in lacks if lack.fatal]
    if fatal:
        raise InvalidRequest(f"error creating database object: no user could be made: {'; '.join(fatal)}")
    return [_told(lack) for lack in lacks]


def _told(lack: Lack) -> str:
    return f"missing: {lack.need}" + "".join(f"; {text}" for text in (lack.reason, lack.remedy) if text)


async def _found(engine: Guard, wanted: Connection) -> str:
    """Opens an engine on trial, and answers which cluster it found. Raises `InvalidRequest` in Vault's words."""
    try:
        health = await engine.open()
    except EngineError as error:
        raise InvalidRequest(f"error creating database object: error verifying connection: {error}") from None
    refused = connections.refusal(wanted, health)
    if health.cluster == wanted.cluster and refused:
        raise InvalidRequest(
            f"error creating database object: error verifying connection: {refused} after it was written with verify_connection=false"
        )
    return health.cluster
