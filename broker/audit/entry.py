"""What an audit line says, in Vault's schema (request and response entries), as the bytes of one JSON object.

Every string inside `data`, and every token and accessor, is written as `hmac-sha256:<hex>` under the audit key: equal values
look equal, and nobody reads them. In clear stay numbers, booleans, null, the keys of objects, times, paths, lease ids,
policies, metadata, display names, errors, and the strings under `CLEAR_KEYS`. Empty fields are left out, as Vault does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import orjson
from msgspec import Struct

from broker.mac import Mac
from broker.secret import Secret

_LABEL = b"broker/audit/value/v1"
_DEPTH_MAX = 100
_NESTED = (dict, list, tuple, Mapping)
_INT64_MIN, _UINT64_MAX = -(1 << 63), (1 << 64) - 1
CLEAR_KEYS = frozenset({"username", "lease_id"})
"""Strings under these keys of `data` stay readable: an auditor must see who got which user, and which lease was ended."""


class Hasher:
    """Turns a secret text into one that only tells equal from different; keyed, so that guessing needs the key."""

    __slots__ = ("_mac",)

    def __init__(self, key: bytes) -> None:
        self._mac = Mac(Mac(key).digest(_LABEL))

    def hash(self, text: str) -> str:
        """`hmac-sha256:` and 64 hex digits."""
        # JSON may carry lone surrogates, which plain UTF-8 refuses.
        return "hmac-sha256:" + self._mac.digest(text.encode("utf-8", "surrogatepass")).hex()


class AuditAuth(Struct, frozen=True, kw_only=True):
    """A token and what is known of it: who asks or, in the response that made it, who may ask from now on."""

    client_token: Secret | None = None
    accessor: str = ""
    display_name: str = ""
    policies: Sequence[str] = ()
    token_policies: Sequence[str] = ()
    metadata: Mapping[str, str] | None = None
    num_uses: int = 0
    remaining_uses: int = 0
    entity_id: str = ""
    token_type: str = ""
    token_ttl_s: int = 0
    token_issue_ms: int | None = None
    allowed: bool | None = None
    """What the policies said to this operation; None before they were asked."""
    granting_policies: Sequence[str] = ()


class Caller(Struct, frozen=True):
    """An `AuditAuth` made ready once (`Scribe.caller`) and used for many entries; it holds nothing secret."""

    token: str
    accessor: str
    auth: orjson.Fragment | None


class Asked(Struct, frozen=True):
    """A request made ready once (`Scribe.asked`) for its two entries; it holds nothing secret."""

    auth: orjson.Fragment | None
    request: orjson.Fragment


NOBODY = Caller("", "", None)
"""Who asks when the broker acts by itself: expiry, recovery, reconciling."""


class AuditMount(Struct, frozen=True, kw_only=True):
    """Where a path is mounted; the fields that Vault repeats in requests and responses."""

    point: str
    type: str
    accessor: str = ""
    plugin_class: str = ""


class AuditRequest(Struct, frozen=True, kw_only=True):
    """What is asked: by a client, or by the broker of itself (`revoke` of a lease's path, without address)."""

    id: str
    operation: str
    path: str
    mount: AuditMount | None = None
    data: Mapping[str, object] | None = None
    """JSON values; a `Secret` counts as a string. Hashed here, so it is passed as it is."""
    remote_address: str = ""
    remote_port: int = 0
    wrap_ttl_s: int = 0


class AuditWrap(Struct, frozen=True, kw_only=True):
    """A response that was wrapped: the caller got this token in its place."""

    token: Secret
    accessor: str
    ttl_s: int
    creation_ms: int
    creation_path: str
    wrapped_accessor: str = ""


class AuditResponse(Struct, frozen=True, kw_only=True):
    """What is answered."""

    mount: AuditMount | None = None
    lease_id: str = ""
    data: Mapping[str, object] | None = None
    auth: AuditAuth | None = None
    warnings: Sequence[str] = ()
    wrap: AuditWrap | None = None


class Scribe:
    """Builds entries; one serves the whole broker. Times are given, so that one operation has one time."""

    __slots__ = ("_clear", "_hasher")

    def __init__(self, hasher: Hasher, *, clear_keys: frozenset[str] = CLEAR_KEYS) -> None:
        self._hasher = hasher
        self._clear = clear_keys

    def caller(self, auth: AuditAuth) -> Caller:
        """The hashed and encoded form of `auth`, to be kept beside a cached token."""
        return Caller(
            self._hash_secret(auth.client_token),
            self._hash_some(auth.accessor),
            orjson.Fragment(orjson.dumps(self._auth(auth))),
        )

    def asked(self, caller: Caller, request: AuditRequest) -> Asked:
        """The hashed and encoded form of who asks what, for both entries of it."""
        return Asked(caller.auth, orjson.Fragment(orjson.dumps(self._request(caller, request))))

    def request(self, at_ms: int, asked: Asked, *, error: str = "") -> bytes:
        """The entry that must be durable before anything is done for the request."""
        return _encode(at_ms, "request", asked, None, error)

    def response(self, at_ms: int, asked: Asked, response: AuditResponse | None, *, error: str = "") -> bytes:
        """The entry that must be durable before the caller hears the answer; it repeats the request, as Vault's does."""
        return _encode(at_ms, "response", asked, None if response is None else self._response(response), error)

    def _auth(self, auth: AuditAuth) -> dict[str, object]:
        return _filled(
            client_token=self._hash_secret(auth.client_token),
            accessor=self._hash_some(auth.accessor),
            display_name=auth.display_name,
            policies=auth.policies,
            token_policies=auth.token_policies,
            policy_results=None if auth.allowed is None else _policy_results(auth),
            metadata=auth.metadata,
            num_uses=auth.num_uses,
            remaining_uses=auth.remaining_uses,
            entity_id=auth.entity_id,
            token_type=auth.token_type,
            token_ttl=auth.token_ttl_s,
            token_issue_time=None if auth.token_issue_ms is None else rfc3339(auth.token_issue_ms),
        )

    def _request(self, caller: Caller, request: AuditRequest) -> dict[str, object]:
        return _filled(
            id=request.id,
            operation=request.operation,
            **_mount(request.mount),
            client_token=caller.token,
            client_token_accessor=caller.accessor,
            namespace={"id": "root"},
            path=request.path,
            data=self._conceal(request.data) if request.data else None,
            remote_address=request.remote_address,
            remote_port=request.remote_port,
            wrap_ttl=request.wrap_ttl_s,
        )

    def _response(self, response: AuditResponse) -> dict[str, object]:
        return _filled(
            auth=None if response.auth is None else self._auth(response.auth),
            **_mount(response.mount),
            secret={"lease_id": response.lease_id} if response.lease_id else None,
            data=self._conceal(response.data),
            warnings=response.warnings,
            wrap_info=None if response.wrap is None else self._wrap(response.wrap),
        )

    def _wrap(self, wrap: AuditWrap) -> dict[str, object]:
        return _filled(
            ttl=wrap.ttl_s,
            token=self._hash_secret(wrap.token),
            accessor=self._hash_some(wrap.accessor),
            creation_time=rfc3339(wrap.creation_ms),
            creation_path=wrap.creation_path,
            wrapped_accessor=self._hash_some(wrap.wrapped_accessor),
        )

    def _hash_some(self, text: str) -> str:
        return self._hasher.hash(text) if text else ""

    def _hash_secret(self, secret: Secret | None) -> str:
        return self._hash_some(secret.reveal()) if secret is not None else ""

    def _conceal(self, value: object, depth: int = 0) -> object:
        # The commonest first: this is done for every value of every request and answer.
        if isinstance(value, str):
            return self._hasher.hash(value)
        if value is None:
            return value
        if isinstance(value, Secret):
            return self._hasher.hash(value.reveal())
        if isinstance(value, int):
            # orjson refuses integers beyond 64 bits.
            return value if _INT64_MIN <= value <= _UINT64_MAX else orjson.Fragment(str(value))
        return self._conceal_nested(value, depth + 1) if isinstance(value, _NESTED) else value

    def _conceal_nested(self, value: Mapping[str, object] | Sequence[object], depth: int) -> object:
        if depth > _DEPTH_MAX:
            return "[nested too deeply]"  # orjson refuses what is nested more than 254 deep
        # A dict is told at once; to ask whether something is a Mapping takes a Python call.
        if isinstance(value, dict | Mapping):
            clear = self._clear
            return {
                key: member if key in clear and isinstance(member, str) else self._conceal(member, depth)
                for key, member in value.items()
            }
        return [self._conceal(member, depth) for member in value]


def rfc3339(at_ms: int) -> str:
    """RFC 3339 in UTC with nine digits of fraction, as Vault writes times; fixed in width, so lines sort."""
    second, millisecond = divmod(at_ms, 1000)
    return f"{_second_text(second)}.{millisecond:03d}000000Z"


@lru_cache(maxsize=4)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _encode(at_ms: int, kind: str, asked: Asked, response: object, error: str) -> bytes:
    entry: dict[str, object] = {"time": rfc3339(at_ms), "type": kind}
    if asked.auth is not None:
        entry["auth"] = asked.auth
    entry["request"] = asked.request
    if response is not None:
        entry["response"] = response
    if error:
        entry["error"] = error
    return orjson.dumps(entry)


def _filled(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value}


def _policy_results(auth: AuditAuth) -> dict[str, object]:
    granting = [{"name": name, "namespace_id": "root", "type": "acl"} for name in auth.granting_policies]
    return {"allowed": auth.allowed, **_filled(granting_policies=granting)}


def _mount(mount: AuditMount | None) -> dict[str, object]:
    if mount is None:
        return {}
    return {
        "mount_point": mount.point,
        "mount_type": mount.type,
        "mount_accessor": mount.accessor,
        "mount_class": mount.plugin_class,
    }
