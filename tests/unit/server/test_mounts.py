"""What stands where."""

from __future__ import annotations

import pytest

from broker.server.mounts import AUTH, SECRET, mount_of


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("database/creds/app", "database/"),
        ("database/", "database/"),
        ("sys/leases/renew", "sys/"),
        ("auth/token/create", "auth/token/"),
        ("auth/token", "auth/token/"),
        ("auth/approle/login", None),
        ("auth", None),
        ("auth/", None),
        ("database", "database/"),
        ("databasex/creds", None),
        ("", None),
        ("/database/creds", None),
    ],
)
def test_mount_of(path: str, point: str | None) -> None:
    """A mount has its own path and what lies under it."""
    mount = mount_of(path)
    assert (None if mount is None else mount.point) == point


def test_accessors_are_of_vaults_form_and_differ() -> None:
    """Type, underscore, eight hex digits."""
    accessors = [str(shown["accessor"]) for shown in (*SECRET.values(), *AUTH.values())]
    assert len(set(accessors)) == len(accessors)
    assert all(len(accessor.rpartition("_")[2]) == 8 for accessor in accessors)
