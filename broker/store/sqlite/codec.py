"""Facts as bytes: JSON objects with keys of one letter or two, in which what has its default is left out.

A letter is never given a second meaning; a field that goes leaves its letter unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import orjson

from broker.model import LeaseFacts, Terms, TokenFacts
from broker.secret import Secret

_LEASE_KEYS = {
    "path": "p",
    "role": "r",
    "role_revision": "rr",
    "connection_name": "c",
    "username": "u",
    "identity": "o",
    "display_name": "d",
    "accessor": "a",
    "issued_ms": "i",
    "renewed_ms": "n",
    "expires_ms": "e",
    "max_expires_ms": "m",
    "default_ttl_s": "t",
    "capped_by": "cb",
    "revoke_started_ms": "rs",
    "disabled_ms": "ds",
    "dropped_ms": "dr",
    "reason": "w",
    "failure": "f",
    "failing_since_ms": "fs",
    "remedy": "rm",
    "recipe": "k",
}
_TERMS_KEY = "T"
_TERMS_KEYS = {"creation": "c", "revocation": "r", "renewal": "n", "rollback": "b", "options": "o"}
_TOKEN_KEYS = {
    "accessor": "a",
    "policies": "p",
    "display_name": "d",
    "path": "q",
    "meta": "m",
    "created_ms": "c",
    "creation_ttl_s": "t",
    "explicit_max_ttl_s": "x",
    "period_s": "v",
    "renewable": "n",
    "orphan": "o",
    "num_uses": "u",
    "entity_id": "e",
    "renewed_ms": "w",
}
_DIGEST_KEY = "h"
_MISSING = object()


def _plan(kind: type, keys: Mapping[str, str]) -> tuple[tuple[str, str, Any], ...]:
    """Attribute, key and default of each field; a field that must be given has a default that nothing equals."""
    defaults = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default for field in fields(kind)
    }
    return tuple((name, key, _MISSING if defaults[name] is MISSING else defaults[name]) for name, key in keys.items())


_LEASE_PLAN = _plan(LeaseFacts, _LEASE_KEYS)
_TERMS_PLAN = _plan(Terms, _TERMS_KEYS)
_TOKEN_PLAN = _plan(TokenFacts, _TOKEN_KEYS)
_LEASE_NAMES = {key: name for name, key in _LEASE_KEYS.items()}
_TERMS_NAMES = {key: name for name, key in _TERMS_KEYS.items()}
_TOKEN_NAMES = {key: name for name, key in _TOKEN_KEYS.items()}


def pack_lease(facts: LeaseFacts) -> bytes:
    """All facts but the password, which is sealed by itself so that it can be erased by itself."""
    packed = _packed(facts, _LEASE_PLAN)
    if terms := _packed(facts.terms, _TERMS_PLAN):
        packed[_TERMS_KEY] = terms
    return orjson.dumps(packed)


def unpack_lease(data: bytes, password: bytes | None) -> LeaseFacts:
    """What `pack_lease` packed, with the password beside it."""
    packed = orjson.loads(data)
    terms = _named(packed.pop(_TERMS_KEY, {}), _TERMS_NAMES)
    named = _named(packed, _LEASE_NAMES)
    if password is not None:
        named["password"] = Secret(password.decode())
    if "remedy" in named:
        named["remedy"] = tuple(named["remedy"])
    return LeaseFacts(terms=_terms(terms), **named)


def pack_token(facts: TokenFacts, digest: bytes) -> bytes:
    """Facts and keyed hash of a token."""
    packed = _packed(facts, _TOKEN_PLAN)
    packed[_DIGEST_KEY] = digest.hex()
    return orjson.dumps(packed)


def unpack_token(data: bytes) -> tuple[TokenFacts, bytes]:
    """What `pack_token` packed."""
    packed = orjson.loads(data)
    digest = bytes.fromhex(packed.pop(_DIGEST_KEY))
    named = _named(packed, _TOKEN_NAMES)
    named["policies"] = tuple(named["policies"])
    return TokenFacts(**named), digest


def _terms(named: dict[str, Any]) -> Terms:
    options = named.pop("options", {})
    return Terms(options=options, **{name: tuple(statements) for name, statements in named.items()})


def _packed(facts: object, plan: tuple[tuple[str, str, Any], ...]) -> dict[str, Any]:
    return {key: value for name, key, default in plan if (value := getattr(facts, name)) != default}


def _named(packed: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in packed.items()}
