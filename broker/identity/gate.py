"""The one step that every operation passes first: who asks, may they, and is it on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from broker.api.envelope import multi_error
from broker.audit.entry import NOBODY, Asked, AuditMount, AuditRequest, AuditResponse, Caller, Scribe
from broker.audit.trail import Trail
from broker.errors import InvalidRequest, PermissionDenied
from broker.identity.cache import Known
from broker.identity.callers import Callers, audit_auth
from broker.identity.policies import decide
from broker.identity.tokens import Tokens
from broker.model import Token
from broker.secret import Secret
from broker.store.protocol import Store


class Incoming(Struct, frozen=True, kw_only=True):
    """An operation that somebody asks for, before anybody looked at who."""

    id: str
    operation: str
    path: str
    mount: AuditMount | None
    data: Mapping[str, object]
    token: Secret | None
    remote_address: str = ""
    remote_port: int = 0


class Passage(Struct, kw_only=True):
    """An operation that may go ahead. `text` is what the caller showed."""

    token: Token
    text: Secret
    last_use: bool
    _asked: Asked
    _scribe: Scribe
    _request_entry: bytes
    _handed_over: bool = False

    def hand_over(self) -> bytes:
        """Its audit line, to be recorded by whoever takes it. What nobody took is recorded with the answer."""
        self._handed_over = True
        return self._request_entry

    def left_entries(self) -> list[bytes]:
        """Its audit line, unless somebody took it."""
        return [] if self._handed_over else [self.hand_over()]

    def response_entry(self, at_ms: int, response: AuditResponse | None, error: str = "") -> bytes:
        """The audit line for its answer."""
        return self._scribe.response(at_ms, self._asked, response, error=error)


class Gate:
    """Authorises and audits. A denied operation is on record too, before its caller hears of it.

    Every method raises `AuditUnavailable` when the record can't be written: nothing may be done or answered then.
    """

    def __init__(self, callers: Callers, tokens: Tokens, trail: Trail, scribe: Scribe, store: Store) -> None:
        self._callers = callers
        self._tokens = tokens
        self._trail = trail
        self._scribe = scribe
        self._store = store

    async def knows(self, token: Secret | None) -> bool:
        """Whether this is anybody's token: asked before more is read of a request than its head. Nothing is put on record."""
        return token is not None and await self._callers.find(token) is not None

    async def admit(self, incoming: Incoming) -> Passage:
        """Lets an operation pass, its request entry durable. Raises `PermissionDenied`."""
        passage = await self._authorise(incoming)
        await self._trail.record([passage.hand_over()])
        return passage

    async def admit_issue(self, incoming: Incoming) -> Passage:
        """Lets an issue pass, whose entries the issuer takes over, sharing one flush among many. Raises `PermissionDenied`.

        `InvalidRequest` for the last use of a token: the lease would end with it at once (Vault's words).
        """
        passage = await self._authorise(incoming)
        if not passage.last_use:
            return passage
        error = InvalidRequest(
            "Secret cannot be returned; token had one use left, so leased credentials were immediately revoked."
        )
        await self.answer(passage, None, str(error))
        raise error

    async def answer(self, passage: Passage, response: AuditResponse | None, error: str = "") -> None:
        """Puts the answer on record, durable, before it is given; then ends a token whose last use this was.

        Its request entry goes before it where nobody recorded that yet: no answer stands without its question.
        """
        try:
            answered = passage.response_entry(self._store.now_ms(), response, error)
            await self._trail.record([*passage.left_entries(), answered])
        finally:
            if passage.last_use:
                await self._tokens.revoke(passage.token)

    async def _authorise(self, incoming: Incoming) -> Passage:
        request = AuditRequest(
            id=incoming.id,
            operation=incoming.operation,
            path=incoming.path,
            mount=incoming.mount,
            data=incoming.data,
            remote_address=incoming.remote_address,
            remote_port=incoming.remote_port,
        )
        known, left = await self._identify(incoming, request)
        token = known.token
        if not decide(token.facts.policies, incoming.operation, incoming.path):
            denied = self._scribe.caller(audit_auth(token, incoming.token, allowed=False))
            if left == 0:
                await self._tokens.revoke(token)
            await self._deny(denied, request, multi_error("permission denied"))
        asked = self._scribe.asked(known.caller, request)
        return Passage(
            token=token,
            text=incoming.token or Secret(""),
            last_use=left == 0,
            _asked=asked,
            _scribe=self._scribe,
            _request_entry=self._scribe.request(self._store.now_ms(), asked),
        )

    async def _identify(self, incoming: Incoming, request: AuditRequest) -> tuple[Known, int | None]:
        if incoming.token is None:
            await self._turn_away(request, "permission denied")
        known = await self._callers.find(incoming.token)
        if known is None:
            await self._turn_away(request, multi_error("permission denied", "invalid token"))
        left = None
        if known.token.uses_left is not None:
            # One use is taken before anything else, as Vault does: a denied request costs it too.
            left = await self._store.use_token(known.token.number)
            if left is None:
                await self._turn_away(request, multi_error("permission denied", "invalid token"))
        return known, left

    async def _turn_away(self, request: AuditRequest, error: str) -> NoReturn:
        # Without its data: else anybody could make the log grow by many times what they send.
        await self._deny(NOBODY, replace(request, data=None), error)

    async def _deny(self, caller: Caller, request: AuditRequest, error: str) -> NoReturn:
        now_ms, asked = self._store.now_ms(), self._scribe.asked(caller, request)
        await self._trail.record(
            [
                self._scribe.request(now_ms, asked, error="permission denied"),
                self._scribe.response(now_ms, asked, None, error="permission denied"),
            ]
        )
        raise PermissionDenied(error)
