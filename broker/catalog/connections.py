"""Connections as they are kept: one document each, under a number that a lease can rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from broker.api.database import ConnectionWrite
from broker.errors import InvalidRequest
from broker.model import ConnectionNumber, Document, Json

KIND = "connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One database cluster and how to reach it. A deleted one stays until its last lease is gone."""

    number: ConnectionNumber
    name: str
    revision: int
    deleted: bool
    plugin_name: str
    plugin_version: str = ""
    allowed_roles: tuple[str, ...] = ()
    root_rotation_statements: tuple[str, ...] = ()
    password_policy: str = ""
    details: Mapping[str, Json] = field(default_factory=dict)
    """The engine's own fields, secrets among them."""

    def allows(self, role: str) -> bool:
        """Whether the role may use this connection: exact names, or `*` at the start or end of an entry (Vault's globs)."""
        return "*" in self.allowed_roles or any(_matches(entry, role) for entry in self.allowed_roles)


def from_document(document: Document) -> Connection:
    """The connection that a document holds."""
    body = orjson.loads(document.body)
    return Connection(
        number=ConnectionNumber(document.number),
        name=document.name,
        revision=document.revision,
        deleted=document.deleted,
        plugin_name=body["plugin_name"],
        plugin_version=body["plugin_version"],
        allowed_roles=tuple(body["allowed_roles"]),
        root_rotation_statements=tuple(body["root_rotation_statements"]),
        password_policy=body["password_policy"],
        details=body["details"],
    )


def merged(old: Connection | None, name: str, write: ConnectionWrite) -> Connection:
    """What the connection is after `write`: fields that were not sent keep what was stored.

    Raises `InvalidRequest` when a new connection names no plugin.
    """
    base = old or Connection(number=ConnectionNumber(0), name=name, revision=0, deleted=False, plugin_name="")
    sent = write.model_fields_set

    def chosen(key: str) -> object:
        return getattr(write, key) if key in sent else getattr(base, key)

    plugin_name = write.plugin_name or base.plugin_name
    if not plugin_name:
        raise InvalidRequest("plugin_name: empty plugin name; allowed is the name of an installed plugin")
    return Connection(
        number=base.number,
        name=name,
        revision=base.revision,
        deleted=False,
        plugin_name=plugin_name,
        plugin_version=str(chosen("plugin_version")),
        allowed_roles=tuple(write.allowed_roles if "allowed_roles" in sent else base.allowed_roles),
        root_rotation_statements=tuple(
            write.root_rotation_statements if "root_rotation_statements" in sent else base.root_rotation_statements
        ),
        password_policy=str(chosen("password_policy")),
        details={**base.details, **(write.model_extra or {})},
    )


def to_body(connection: Connection) -> bytes:
    """The document's body, in a stable order so that an unchanged connection is an unchanged document."""
    return orjson.dumps(
        {
            "plugin_name": connection.plugin_name,
            "plugin_version": connection.plugin_version,
            "allowed_roles": connection.allowed_roles,
            "root_rotation_statements": connection.root_rotation_statements,
            "password_policy": connection.password_policy,
            "details": connection.details,
        },
        option=orjson.OPT_SORT_KEYS,
    )


def _matches(entry: str, role: str) -> bool:
    head, tail = entry.startswith("*"), entry.endswith("*")
    core = entry.strip("*")
    if head and tail:
        return core in role
    if head:
        return role.endswith(core)
    return role.startswith(core) if tail else role == entry
