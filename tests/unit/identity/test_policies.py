"""What the two built-in policies allow, as a truth table."""

from __future__ import annotations

import pytest

from broker.identity.policies import decide, granting

ROOT, DEFAULT, NONE, OTHER = ("root",), ("default",), (), ("app",)


@pytest.mark.parametrize(
    ("policies", "operation", "path", "allowed"),
    [
        (ROOT, "read", "database/creds/app", True),
        (ROOT, "delete", "anything/at/all", True),
        (ROOT, "unheard-of", "", True),
        (DEFAULT, "read", "auth/token/lookup-self", True),
        (DEFAULT, "update", "auth/token/renew-self", True),
        (DEFAULT, "update", "auth/token/revoke-self", True),
        (DEFAULT, "update", "sys/leases/lookup", True),
        (DEFAULT, "update", "sys/leases/renew", True),
        (DEFAULT, "update", "sys/renew", True),
        (DEFAULT, "update", "sys/leases/renew/database/creds/app/x", False),
        (DEFAULT, "update", "sys/leases/revoke", False),
        (DEFAULT, "list", "sys/leases/lookup/", False),
        (DEFAULT, "read", "database/creds/app", False),
        (DEFAULT, "update", "auth/token/create", False),
        (DEFAULT, "update", "auth/token/lookup-self", False),
        (DEFAULT, "delete", "auth/token/lookup-self", False),
        (DEFAULT, "read", "auth/token/lookup-self/", False),
        (DEFAULT, "read", "sys/mounts", False),
        (NONE, "read", "auth/token/lookup-self", False),
        (OTHER, "read", "auth/token/lookup-self", False),
        (OTHER, "read", "database/creds/app", False),
        (NONE, "read", "sys/internal/ui/mounts", True),
        (OTHER, "read", "sys/internal/ui/mounts/database/creds/app", True),
        (OTHER, "update", "sys/internal/ui/mounts/database", False),
        (OTHER, "read", "sys/internal/ui/mountsx", False),
        (NONE, "read", "sys/internal/specs/openapi", True),
        (NONE, "help", "database/creds/app", True),
        (OTHER, "read", "sys/internal/specs/openapi/x", False),
        (("rooted", "Root"), "read", "database/creds/app", False),
    ],
)
def test_decisions(policies: tuple[str, ...], operation: str, path: str, *, allowed: bool) -> None:
    """Root may do everything, the default policy its few paths, others only see the mounts."""
    assert decide(policies, operation, path) is allowed


def test_what_granted_is_named() -> None:
    """The audit log says which policy's word was taken."""
    assert granting(("root",)) == ("root",)
    assert granting(("app", "default")) == ("default",)
    assert granting(("app",)) == ()
