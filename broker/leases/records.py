"""Audit entries of what the broker does by itself: expiry, recovery, refill. They have the shape of requests, without a caller."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from broker.audit import entry
from broker.audit.entry import NOBODY, AuditMount, AuditRequest, Scribe
from broker.secret import random_bytes

CLEAR_KEYS = entry.CLEAR_KEYS | {"reason", "connection", "identity", "place"}
"""What of these entries' data is written in clear, beside what always is: it is the broker's own text."""
MOUNT = AuditMount(point="database/", type="database", plugin_class="secret")


def new_request(operation: str, path: str, data: Mapping[str, object] | None = None) -> AuditRequest:
    """A request of the broker to itself, under an id of its own."""
    request_id = str(uuid.UUID(bytes=random_bytes(16), version=4))
    return AuditRequest(id=request_id, operation=operation, path=path, mount=MOUNT, data=data)


def request_entry(scribe: Scribe, at_ms: int, request: AuditRequest) -> bytes:
    """The entry before it is done."""
    return scribe.request(at_ms, scribe.asked(NOBODY, request))
