"""From a token's text to the token."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from broker.audit.entry import AuditAuth, Scribe
from broker.identity.cache import Known, TokenCache
from broker.identity.policies import granting
from broker.ids import number_in_token
from broker.mac import Mac
from broker.model import Token, TokenNumber
from broker.secret import Secret
from broker.store.protocol import Store

_TEXT_CHARS = 256


class Callers:
    """Finds tokens by their text: in the cache, else in the store. `key` (32 bytes) keys the hash that is stored of them."""

    def __init__(self, store: Store, scribe: Scribe, key: bytes, cache: TokenCache) -> None:
        self._store = store
        self._scribe = scribe
        self._mac = Mac(key)
        self._cache = cache

    def digest(self, text: Secret) -> bytes:
        """The keyed hash (HMAC-SHA256) that is stored instead of the token."""
        return self._mac.digest(text.reveal().encode())

    async def find(self, text: Secret) -> Known | None:
        """The token, unless there is none or it has ended. Use-limited tokens always come from the store."""
        plain = text.reveal()
        if not plain.isascii() or len(plain) > _TEXT_CHARS:
            return None
        digest = self.digest(text)
        known = self._cache.get(digest, self._store.now_ms())
        if known is not None:
            return known
        generation = self._cache.generation
        number = number_in_token(plain)
        token = None if number is None else await self._store.token(number)
        if token is None or not hmac.compare_digest(token.digest, digest):
            return None
        known = Known(token, self._scribe.caller(audit_auth(token, text, allowed=True)))
        if token.uses_left is None:
            self._cache.put(digest, known, self._store.now_ms(), generation)
        return known

    def forget(self, numbers: Iterable[TokenNumber]) -> None:
        """The store is asked again about these tokens."""
        self._cache.forget(numbers)


def audit_auth(token: Token, text: Secret | None, *, allowed: bool | None = None, ttl_s: int | None = None) -> AuditAuth:
    """What the audit log says of a token; `allowed` None where no policy was asked, `ttl_s` where it was just set."""
    facts = token.facts
    return AuditAuth(
        client_token=text,
        accessor=facts.accessor,
        display_name=facts.display_name,
        policies=facts.policies,
        token_policies=facts.policies,
        metadata=facts.meta,
        num_uses=facts.num_uses,
        remaining_uses=token.uses_left or 0,
        token_type="service",
        token_ttl_s=facts.creation_ttl_s if ttl_s is None else ttl_s,
        token_issue_ms=facts.created_ms,
        allowed=allowed,
        granting_policies=granting(facts.policies) if allowed else (),
    )
