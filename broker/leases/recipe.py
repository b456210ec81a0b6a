"""What a role makes its users from, as a digest: whether a user made earlier is still such as the role would make it now."""

from __future__ import annotations

import hashlib

import orjson
from msgspec import to_builtins

from broker.catalog.roles import Role

_BYTES = 12


def recipe(role: Role) -> str:
    """24 hexadecimal digits over connection, terms and kind of credential; lifetimes, limits and the pool's size are no part of it."""
    made_from = {
        "db_name": role.db_name,
        "terms": to_builtins(role.terms),
        "credential_type": role.credential_type,
        "credential_config": role.credential_config,
    }
    packed = orjson.dumps(made_from, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(packed, digest_size=_BYTES, person=b"broker/recipe/v1").hexdigest()
