"""Tokens: made, looked up, renewed, ended. A child ends with its parent, and every lease with its token."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from msgspec.structs import replace

from broker.api.auth import TokenCreate, TokenShown
from broker.audit.entry import rfc3339
from broker.errors import InvalidRequest, PermissionDenied
from broker.identity import grants
from broker.identity.callers import Callers
from broker.identity.policies import ROOT
from broker.identity.settings import TokenSettings
from broker.ids import Numbers, PublicIds, new_token
from broker.model import NO_TOKEN, Token, TokenFacts, TokenNumber
from broker.secret import Secret
from broker.store.protocol import Store
from broker.store.words import TokenEnd

_PAGE = 1_000
_GENERATIONS = 1_000
"""How far up a line of tokens is followed (half a millisecond)."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that was made or renewed. `text` is None where it was renewed by its accessor; `ttl_s` 0: it never ends."""

    token: Token
    text: Secret | None
    ttl_s: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the tokens work with. `on_ended` is called after tokens ended or end sooner, so that their leases are looked at."""

    store: Store
    numbers: Numbers
    ids: PublicIds
    callers: Callers
    settings: TokenSettings
    on_ended: Callable[[], None]


class Tokens:
    """The verbs of `auth/token`. When one returns, what it did is durable, and no cache of this process says otherwise."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = parts.store

    # made -----------------------------------------------------------------------------------------------------------

    async def make_root_token(self, keep: Callable[[Secret], None]) -> Secret:
        """A token that may do everything and never ends. `keep` gets its text before the store gets its hash."""
        number = TokenNumber(self._parts.numbers.next())
        text = new_token(number)
        keep(text)
        facts = TokenFacts(
            accessor=self._parts.ids.accessor(number),
            policies=(ROOT,),
            display_name="root",
            path="auth/token/root",
            created_ms=self._store.now_ms(),
            renewable=False,
            orphan=True,
        )
        await self._store.add_token(self._token(number, text, facts, parent=NO_TOKEN), ttl_s=None)
        return text

    async def create(self, order: TokenCreate, maker: Token, path: str) -> Grant:
        """A new token, child of `maker` unless `order.no_parent`.

        Raises `InvalidRequest`; `PermissionDenied` when `maker` has ended.
        """
        grants.check_maker(order, maker)
        policies = grants.policies_for(order, maker)
        life = grants.life_for(order, policies, maker, self._parts.settings)
        number = TokenNumber(self._parts.numbers.next())
        text = new_token(number)
        facts = TokenFacts(
            accessor=self._parts.ids.accessor(number),
            policies=policies,
            display_name=grants.display_name(order),
            path=path,
            meta=order.meta or None,
            created_ms=self._store.now_ms(),
            creation_ttl_s=life.ttl_s or 0,
            explicit_max_ttl_s=life.explicit_max_s,
            period_s=life.period_s,
            renewable=order.renewable and life.ttl_s is not None,
            orphan=order.no_parent,
            num_uses=order.num_uses,
        )
        token = self._token(number, text, facts, parent=NO_TOKEN if order.no_parent else maker.number)
        if not await self._store.add_token(token, ttl_s=life.ttl_s):
            raise PermissionDenied
        left_s = None if order.no_parent or maker.expires_ms is None else (maker.expires_ms - facts.created_ms) // 1_000
        ttl_s, late = _within(life.ttl_s, left_s)
        return Grant(token, text, ttl_s or 0, (*grants.policy_warnings(policies), *life.warnings, *late))

    def _token(self, number: TokenNumber, text: Secret, facts: TokenFacts, *, parent: TokenNumber) -> Token:
        return Token(
            number=number,
            parent=parent,
            expires_ms=None,
            uses_left=facts.num_uses or None,
            digest=self._parts.callers.digest(text),
            facts=facts,
        )

    # looked up ------------------------------------------------------------------------------------------------------

    async def by_text(self, text: Secret) -> Token | None:
        """The token with this text, unless it has ended."""
        known = await self._parts.callers.find(text)
        return None if known is None else known.token

    async def by_accessor(self, accessor: str) -> Token | None:
        """The token that this accessor stands for, unless it has ended."""
        number = self._parts.ids.token_number(accessor)
        return None if number is None else await self._store.token(number)

    async def head(self, token: Token) -> Token:
        """The token that a token's line begins with, which has no parent: a login's, or one made without a parent; often itself.

        The store is asked each time: an ancestor may have been revoked, renewed or left its children. Raises `PermissionDenied` when the
        token has ended, `InvalidRequest` when there are more than 1,000 generations in between.
        """
        if token.parent == NO_TOKEN:
            return token
        head = await self._store.head_of_token(token.number, generations=_GENERATIONS)
        if head is not None:
            return head
        if await self._store.token(token.number) is None:
            raise PermissionDenied
        raise InvalidRequest(f"more than {_GENERATIONS} generations lie between this token and the one without a parent")

    async def accessors(self) -> list[str]:
        """The accessors of all tokens that have not ended."""
        found: list[str] = []
        last = NO_TOKEN
        while page := await self._store.tokens(after=last, limit=_PAGE):
            found += [token.facts.accessor for token in page]
            last = page[-1].number
        return found

    async def shown(self, token: Token, text: Secret | None) -> TokenShown:
        """A token as lookup shows it, its times as the store has them now. Raises `PermissionDenied` when it has ended."""
        # The cached one may say too few or too many uses, or a time before a renewal elsewhere.
        fresh = await self._store.token(token.number)
        if fresh is None:
            raise PermissionDenied("bad token")
        return _shown(fresh, text, self._store.now_ms())

    # renewed --------------------------------------------------------------------------------------------------------

    async def renew(self, token: Token, text: Secret | None, increment_s: int) -> Grant:
        """More time for a token, up to the end of its parent. Raises `InvalidRequest` when it can't have any, or has ended."""
        now_ms = self._store.now_ms()
        life = grants.renewed_life(token, increment_s, now_ms, self._parts.settings)
        facts = replace(token.facts, renewed_ms=now_ms)
        renewal = await self._store.renew_token(token.number, ttl_s=life.ttl_s or 0, facts=facts)
        if renewal is None:
            raise InvalidRequest("token not found")
        self._parts.callers.forget([token.number, *renewal.shortened])
        if token.expires_ms is not None and renewal.expires_ms < token.expires_ms:
            self._parts.on_ended()
        ttl_s, late = _within(life.ttl_s, (renewal.expires_ms - now_ms) // 1_000)
        return Grant(replace(token, facts=facts), text, ttl_s or 0, (*life.warnings, *late))

    # ended ----------------------------------------------------------------------------------------------------------

    async def revoke(self, token: Token) -> None:
        """Ends a token, its children and all their leases; the leases are removed in the background."""
        await self._end([token.number], TokenEnd.WITH_CHILDREN)

    async def revoke_orphan(self, token: Token) -> None:
        """Ends a token and its leases; its children live on without a parent."""
        await self._end([token.number], TokenEnd.ORPHAN_CHILDREN)

    async def revoke_made_at(self, prefix: str) -> None:
        """Ends every token that was made at a path or under it, their children and all their leases; these are removed in the background.

        That may be many commits. Tokens made meanwhile end too.
        """
        under, after = f"{prefix}/", NO_TOKEN
        while page := await self._store.tokens(after=after, limit=_PAGE):
            after = page[-1].number
            made = [token.number for token in page if f"{token.facts.path}/".startswith(under)]
            if made:
                await self._end(made, TokenEnd.WITH_CHILDREN)

    async def expire(self, limit: int) -> int:
        """Ends up to `limit` tokens whose time has come, with their children; answers how many ended."""
        ended = await self._store.end_expired_tokens(limit)
        if ended:
            self._parts.callers.forget(ended)
            self._parts.on_ended()
        return len(ended)

    async def _end(self, numbers: Collection[TokenNumber], children: TokenEnd) -> None:
        ended = await self._store.end_tokens(numbers, children=children)
        self._parts.callers.forget(ended)
        self._parts.on_ended()


def _within(ttl_s: int | None, left_s: int | None) -> tuple[int | None, list[str]]:
    """As much of a life as the parent's end leaves (None: all), which the store keeps to, and a warning where that is not all."""
    if left_s is None or (ttl_s is not None and ttl_s <= left_s):
        return ttl_s, []
    return left_s, ["the parent token ends before this one would, and this one ends with it; renew the parent, then this one"]


def _shown(token: Token, text: Secret | None, now_ms: int) -> TokenShown:
    facts = token.facts
    return TokenShown(
        id="" if text is None else text.reveal(),
        accessor=facts.accessor,
        policies=list(facts.policies),
        path=facts.path,
        meta=None if facts.meta is None else dict(facts.meta),
        display_name=facts.display_name,
        num_uses=token.uses_left or 0,
        orphan=token.parent == NO_TOKEN,
        creation_time=facts.created_ms // 1_000,
        creation_ttl=facts.creation_ttl_s,
        expire_time=None if token.expires_ms is None else rfc3339(token.expires_ms),
        ttl=0 if token.expires_ms is None else max(0, token.expires_ms - now_ms) // 1_000,
        explicit_max_ttl=facts.explicit_max_ttl_s,
        entity_id=facts.entity_id,
        renewable=facts.renewable,
        issue_time=rfc3339(facts.created_ms),
        last_renewal=rfc3339(facts.renewed_ms) if facts.renewed_ms else None,
        last_renewal_time=facts.renewed_ms // 1_000 if facts.renewed_ms else None,
        period=facts.period_s or None,
    )
