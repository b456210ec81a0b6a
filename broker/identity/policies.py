"""What a token may do. Pure; the policy language will take the place of these two built-in policies."""

from __future__ import annotations

from collections.abc import Collection

ROOT = "root"
DEFAULT = "default"
BUILT_IN = frozenset({ROOT, DEFAULT})

_ANY_TOKEN_READS = "sys/internal/ui/mounts"
"""Vault lets a token see the mounts on which it may do anything; what is mounted here is no secret."""
_ANY_TOKEN_DOES = "help"
"""Vault asks no policy for it: what a path is for is no secret."""
_ANYBODY_READS = "sys/internal/specs/openapi"
"""Nobody needs a policy for it in Vault either: what may be asked is no secret."""

_DEFAULT_ALLOWS = frozenset(
    {
        ("read", "auth/token/lookup-self"),
        ("update", "auth/token/renew-self"),
        ("update", "auth/token/revoke-self"),
        ("update", "sys/leases/lookup"),
        ("update", "sys/leases/renew"),
        ("update", "sys/renew"),
    }
)
"""The part of Vault's own `default` policy that this broker has paths for. Whoever knows a lease id may renew it."""


def decide(policies: Collection[str], operation: str, path: str) -> bool:
    """Whether a token with these policies may do `operation` (read, list, create, update, delete, help) at `path`."""
    if ROOT in policies or operation == _ANY_TOKEN_DOES:
        return True
    if operation == "read" and (path in (_ANY_TOKEN_READS, _ANYBODY_READS) or path.startswith(_ANY_TOKEN_READS + "/")):
        return True
    return DEFAULT in policies and (operation, path) in _DEFAULT_ALLOWS


def granting(policies: Collection[str]) -> tuple[str, ...]:
    """The policies whose word `decide` took, for the audit log."""
    return (ROOT,) if ROOT in policies else tuple(name for name in policies if name == DEFAULT)
