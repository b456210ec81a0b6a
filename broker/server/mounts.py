"""What stands where. The mounts are fixed, so their accessors and ids can be."""

from __future__ import annotations

import hashlib
import uuid

from broker import __version__
from broker.api.system import Mount, MountTuning
from broker.audit.entry import AuditMount

DATABASE = "database/"
TOKEN = "auth/token/"
SYSTEM = "sys/"

_SECRET_MOUNTS = {DATABASE: ("database", "database users that live for one lease"), SYSTEM: ("system", "the broker itself")}
_AUTH_MOUNTS = {TOKEN: ("token", "tokens")}


def _accessor(kind: str, point: str) -> str:
    return f"{kind}_{hashlib.sha256(point.encode()).hexdigest()[:8]}"


def _shown(kind: str, description: str, point: str) -> dict[str, object]:
    return Mount(
        type=kind,
        description=description,
        accessor=_accessor(kind, point),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"broker:{point}")),
        running_plugin_version=f"v{__version__}+builtin",
    ).model_dump()


SECRET = {point: _shown(*what, point) for point, what in _SECRET_MOUNTS.items()}
"""Mounts of secrets as `sys/mounts` shows them."""
AUTH = {point.removeprefix("auth/"): _shown(*what, point) for point, what in _AUTH_MOUNTS.items()}
"""Mounts of auth methods, under their names without `auth/`."""

TUNING = {point: MountTuning(description=text).model_dump() for point, (_, text) in _SECRET_MOUNTS.items()}
"""How they are set."""

_AUDITED = {
    point: AuditMount(
        point=point,
        type=kind,
        accessor=_accessor(kind, point),
        plugin_class="auth" if point in _AUTH_MOUNTS else "secret",
    )
    for point, (kind, _) in (_SECRET_MOUNTS | _AUTH_MOUNTS).items()
}


def mount_of(path: str) -> AuditMount | None:
    """The mount that a path (without `/v1/`) lies in, as the audit log names it; None when there is none."""
    head, _, rest = path.partition("/")
    return _AUDITED.get(f"auth/{rest.partition('/')[0]}/" if head == "auth" else f"{head}/")
