"""Roles as they are kept: what a lease of each is made with, and for how long."""

from __future__ import annotations

import orjson
from msgspec import Struct, field

from broker.api.database import RoleWrite
from broker.engines.statements import decode
from broker.errors import InvalidRequest
from broker.model import Document, Terms

KIND = "role"
TOKEN, IDENTITY = "token", "identity"
"""Whose a lease is: the asking token's, or that of the token which its line begins with."""
MOUNT = "database"
"""Where the database engine answers; every role's lease path starts with it."""

_STATEMENTS = {
    "creation_statements": "creation",
    "revocation_statements": "revocation",
    "renew_statements": "renewal",
    "rollback_statements": "rollback",
}


class Role(Struct, frozen=True, kw_only=True):
    """What a lease of this role is."""

    name: str
    revision: int
    db_name: str
    written: Terms = field(default_factory=Terms)
    """What it tells the engine, as it was written: so it is kept and read back."""
    terms: Terms = field(default_factory=Terms)
    """The same with its statements decoded: so it is done."""
    default_ttl_s: int = 0
    """0: the broker's default."""
    max_ttl_s: int = 0
    """0: the broker's maximum."""
    ttl_jitter: int = 0
    """By how many percent each time to live may be shortened, by chance."""
    session_grace_s: int = 0
    """For how long open sessions may go on when the time of their lease is over."""
    credential_type: str = "password"
    credential_config: dict[str, str] = field(default_factory=dict)
    prepared_users: int = 0
    reissue: bool = False
    max_leases: int = 0
    """0: the broker's limit."""
    lease_owner: str = TOKEN

    @property
    def path(self) -> str:
        """The lease path of the role: what its lease ids begin with."""
        return lease_path(self.name)


def lease_path(role: str) -> str:
    """The lease path of a role of that name, be there one or not."""
    return f"{MOUNT}/creds/{role}"


def from_document(document: Document) -> Role:
    """The role that a document holds."""
    body = orjson.loads(document.body)
    written = Terms(
        **{word: tuple(body[name]) for name, word in _STATEMENTS.items()},
        options=body["options"],
    )
    return Role(
        name=document.name,
        revision=document.revision,
        written=written,
        terms=decoded(written),
        **{key: body[key] for key in _PLAIN if key in body},
    )


def decoded(written: Terms) -> Terms:
    """The terms with the statements that their texts stand for, which may be encoded (see `decode`)."""
    return Terms(**{word: decode(getattr(written, word)) for word in _STATEMENTS.values()}, options=written.options)


_PLAIN = (
    "db_name",
    "default_ttl_s",
    "max_ttl_s",
    "ttl_jitter",
    "session_grace_s",
    "credential_type",
    "credential_config",
    "prepared_users",
    "reissue",
    "max_leases",
    "lease_owner",
)


def merged(old: Role | None, name: str, write: RoleWrite) -> Role:
    """What the role is after `write`: fields that were not sent keep what was stored.

    Raises `InvalidRequest` when a new role names no connection, its default TTL is over its maximum, or an encoded statement has a NUL.
    """
    base = old or Role(name=name, revision=0, db_name="")
    sent = write.model_fields_set

    def statements(key: str) -> tuple[str, ...]:
        return tuple(getattr(write, key)) if key in sent else getattr(base.written, _STATEMENTS[key])

    db_name = write.db_name or base.db_name
    if not db_name:
        raise InvalidRequest("database name is required")
    written = Terms(
        **{word: statements(key) for key, word in _STATEMENTS.items()},
        options=write.unknown_over(base.written.options),
    )
    role = Role(
        name=name,
        revision=base.revision,
        db_name=db_name,
        written=written,
        terms=decoded(written),
        default_ttl_s=write.default_ttl if "default_ttl" in sent else base.default_ttl_s,
        max_ttl_s=write.max_ttl if "max_ttl" in sent else base.max_ttl_s,
        ttl_jitter=write.ttl_jitter if "ttl_jitter" in sent else base.ttl_jitter,
        session_grace_s=write.session_grace if "session_grace" in sent else base.session_grace_s,
        credential_type=write.credential_type,
        credential_config=dict(write.credential_config if "credential_config" in sent else base.credential_config),
        prepared_users=write.prepared_users if "prepared_users" in sent else base.prepared_users,
        reissue=write.reissue if "reissue" in sent else base.reissue,
        max_leases=write.max_leases if "max_leases" in sent else base.max_leases,
        lease_owner=write.lease_owner if "lease_owner" in sent else base.lease_owner,
    )
    for key, word in _STATEMENTS.items():
        if any("\x00" in statement for statement in getattr(role.terms, word)):
            raise InvalidRequest(f"{key}: a NUL character can't be part of a statement")
    if role.max_ttl_s and role.default_ttl_s > role.max_ttl_s:
        raise InvalidRequest(f"default_ttl: {role.default_ttl_s} s is over max_ttl ({role.max_ttl_s} s)")
    return role


def to_body(role: Role) -> bytes:
    """The document's body, in a stable order so that an unchanged role is an unchanged document."""
    body: dict[str, object] = {name: getattr(role.written, word) for name, word in _STATEMENTS.items()}
    body |= {key: getattr(role, key) for key in _PLAIN}
    return orjson.dumps(body | {"options": role.written.options}, option=orjson.OPT_SORT_KEYS)


def shown(role: Role) -> dict[str, object]:
    """The role as Vault's API reads it back; engine options and our own fields stand beside Vault's."""
    data: dict[str, object] = {name: list(getattr(role.written, word)) for name, word in _STATEMENTS.items()}
    data |= {
        "db_name": role.db_name,
        "default_ttl": role.default_ttl_s,
        "max_ttl": role.max_ttl_s,
        "ttl_jitter": role.ttl_jitter,
        "session_grace": role.session_grace_s,
        "credential_type": role.credential_type,
        "prepared_users": role.prepared_users,
        "reissue": role.reissue,
        "max_leases": role.max_leases,
        "lease_owner": role.lease_owner,
    }
    if role.credential_config:
        data["credential_config"] = dict(role.credential_config)
    return data | dict(role.written.options)
