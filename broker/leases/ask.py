"""What is asked for and what is answered, and the request's audit entry, which is durable before anything is done or refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from broker.audit.trail import Trail
from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.errors import AuditUnavailable
from broker.leases.ttl import Ttl
from broker.model import LeaseId, Token, TokenNumber
from broker.secret import Secret
from broker.store.words import Limits

T = TypeVar("T")


class Issued(Struct, frozen=True, kw_only=True):
    """A lease as its caller hears of it, once."""

    lease_id: LeaseId
    ttl_s: int
    username: str
    password: Secret
    warnings: tuple[str, ...] = ()
    capped_by: str = ""


class Ask(Struct, frozen=True, kw_only=True):
    """What a caller asks for, and the audit entries that surround the answer."""

    role: str
    mount: str
    token: TokenNumber
    """Who asks."""
    owner: Token
    """Whom the lease belongs to, counts for and ends with: the caller's own token, or another one that the caller's descends from."""
    display_name: str
    idempotency_key: str
    request_entry: bytes
    """Durable before any statement reaches a database."""
    response_entry: Callable[[Issued], bytes]
    """Durable before `Issuer.issue` returns."""


class RequestRecord:
    """One request's entry on its way to the disc: written once, by whoever needs it durable first."""

    __slots__ = ("entry", "writing")

    def __init__(self, entry: bytes) -> None:
        self.entry = entry
        self.writing: asyncio.Future[None] | None = None

    @property
    def unwritten(self) -> bool:
        """Whether nobody has begun to write it, or whoever did failed."""
        writing = self.writing
        return writing is None or (writing.done() and (writing.cancelled() or writing.exception() is not None))


def on_record(trail: Trail, requests: Sequence[RequestRecord]) -> asyncio.Future[Any]:
    """Done when all these entries are durable; those that nobody has written yet share one flush. Fails with `AuditUnavailable`.

    Cancelling it takes no entry back: who asks once more waits for the same flush.
    """
    fresh = [request for request in requests if request.unwritten]
    if fresh:
        writing = asyncio.ensure_future(trail.record([request.entry for request in fresh]))
        for request in fresh:
            request.writing = writing
    waits = {request.writing for request in requests if request.writing is not None}
    return asyncio.shield(waits.pop()) if len(waits) == 1 else asyncio.gather(*map(asyncio.shield, waits))


async def beside_record(work: Awaitable[T], recording: asyncio.Future[Any]) -> tuple[T, Exception | None]:
    """What `work` gives, and what kept the entries off the disc, if anything did; both have come to their end.

    Raises what `work` raises; nobody waits for the recording then. (A gather would cost each of them a task more.)
    """
    try:
        done = await work
    except BaseException:
        recording.add_done_callback(_heard)
        raise
    try:
        await recording
    except AuditUnavailable as unrecorded:
        return done, unrecorded
    return done, None


def _heard(recording: asyncio.Future[Any]) -> None:
    """Looks at how it ended: nobody else will, and asyncio would log that."""
    if not recording.cancelled():
        recording.exception()


class Plan(Struct, frozen=True):
    """What an ask comes to once its role and connection are known."""

    role: Role
    connection: Connection
    ttl: Ttl
    """What the caller may have; a role with jitter shortens it for each lease that is made."""
    limits: Limits
    ask_key: bytes | None
    request: RequestRecord


def ask_key(ask: Ask, role: Role) -> bytes | None:
    """16 bytes for "the same question": token, path and the client's key; or token and path alone where the role re-issues."""
    if not ask.idempotency_key and not role.reissue:
        return None
    kind = "idempotency" if ask.idempotency_key else "reissue"
    question = f"{kind}\x00{ask.token}\x00{role.path}\x00{ask.idempotency_key}"
    return hashlib.blake2b(question.encode(), digest_size=16, person=b"broker/ask/v1").digest()
