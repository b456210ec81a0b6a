"""Connections as they are kept: one document each, under a number that a lease can rely on."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from msgspec import Struct, field
from msgspec.structs import replace

from broker.api.database import ConnectionWrite
from broker.engines.protocol import Health
from broker.errors import InvalidRequest
from broker.model import ConnectionNumber, Document, Json

KIND = "connection"
LINE = "line"
"""The kind of the documents that say of deleted connections, by their numbers, what changed since: `timeline` and `addresses`."""
STEPPED_BACK = "0"
"""Stands for the timeline where an earlier one was accepted: any that is found then is another one, and not a lower one."""


class Connection(Struct, frozen=True, kw_only=True):
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
    cluster: str = ""
    """Where the users of its leases live (see `Health.cluster`); empty while nobody has connected, or where it can't be told."""
    timeline: str = ""
    """On which its leases were checked last (see `Health.timeline`); empty while none was seen, `STEPPED_BACK` after a reset."""
    addresses: tuple[str, ...] = ()
    """By which the server of that timeline was reached (see `Health.addresses`)."""
    proven: Mapping[str, Json] | None = None
    """The fields that were seen to lead to `cluster`, where `details` were changed since and not tried yet."""

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
        cluster=body.get("cluster", ""),
        proven=body.get("proven"),
        timeline=body.get("timeline", ""),
        addresses=tuple(body.get("addresses", ())),
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
        details=write.unknown_over(base.details),
        cluster=base.cluster,
        proven=base.proven,
        timeline=base.timeline,
        addresses=base.addresses,
    )


def verified(wanted: Connection, cluster: str) -> Connection:
    """The connection once its fields were seen to lead to `cluster`."""
    return replace(wanted, cluster=cluster, proven=None)


def unverified(old: Connection | None, wanted: Connection) -> Connection:
    """The connection as it is kept untried: with the fields of `old` that are known to lead to its cluster."""
    if old is None or not old.cluster or old.proven is not None or same_address(old, wanted):
        return wanted
    return replace(wanted, proven=old.details)


def former(old: Connection) -> Connection:
    """The connection with the fields that its leases were made over."""
    return old if old.proven is None else replace(old, details=old.proven, proven=None)


def moved(old: Connection | None, wanted: Connection) -> bool:
    """Whether `wanted` is, or may be, another cluster than the one that has the users of `old`."""
    if old is None:
        return False
    return old.plugin_name != wanted.plugin_name or old.cluster not in ("", wanted.cluster)


def superseded(found: str, known: str) -> bool:
    """Whether a server on the timeline `found` is behind one that was seen on `known`; names that are no numbers have no order."""
    return found.isdecimal() and known.isdecimal() and int(found) < int(known)


def replaced(connection: Connection, health: Health) -> bool:
    """Whether the server is reached by none of the addresses that led to the one with the connection's users, on the same timeline."""
    same_line = health.timeline == connection.timeline
    return same_line and bool(health.addresses and connection.addresses) and not {*health.addresses} & {*connection.addresses}


def refusal(connection: Connection, health: Health) -> str:
    """Why nothing may be done on this server of the connection's cluster, though it takes writes; empty where it may."""
    if superseded(health.timeline, connection.timeline):
        return (
            f"the server was superseded: its timeline is {health.timeline}, and one with {connection.timeline} was seen; "
            f"where that is meant, reset the connection"
        )
    # An address that was taken off the connection is one that an operator has done with.
    if replaced(connection, health) and {*connection.addresses} & {*health.others}:
        return (
            f"{' '.join(health.addresses)} takes writes on timeline {health.timeline} as {' '.join(connection.addresses)} did, but is "
            f"another server, and may lack what was done there; where that is meant, reset the connection"
        )
    return ""


def same_address(one: Connection, other: Connection) -> bool:
    """Whether both are reached in the same way, so that one engine serves for both."""
    return one.plugin_name == other.plugin_name and one.details == other.details


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
            "cluster": connection.cluster,
            "proven": connection.proven,
            "timeline": connection.timeline,
            "addresses": connection.addresses,
        },
        option=orjson.OPT_SORT_KEYS,
    )


def line_to_body(connection: Connection) -> bytes:
    """The body of a document of the kind `LINE`."""
    return orjson.dumps({"timeline": connection.timeline, "addresses": connection.addresses}, option=orjson.OPT_SORT_KEYS)


def with_line(connection: Connection, document: Document) -> Connection:
    """The connection as a document of the kind `LINE` has it."""
    body = orjson.loads(document.body)
    return replace(connection, timeline=body["timeline"], addresses=tuple(body["addresses"]))


def _matches(entry: str, role: str) -> bool:
    head, tail = entry.startswith("*"), entry.endswith("*")
    core = entry.strip("*")
    if head and tail:
        return core in role
    if head:
        return role.endswith(core)
    return role.startswith(core) if tail else role == entry
