"""Conformance: what every store does with tokens. Only the protocol is used."""

from __future__ import annotations

from typing import Any

import pytest

from broker.model import NO_TOKEN, Accessor, LeaseState, Stage, Token, TokenFacts, TokenNumber
from broker.store.words import CrowdedTokens, TokenEnd

HOUR_MS = 3_600_000
FACTS = TokenFacts(accessor=Accessor("a"), policies=("root",), display_name="root", path="auth/token/root")


def plain(number: int, **changes: object) -> Token:
    token = {"parent": NO_TOKEN, "expires_ms": None, "uses_left": None, "digest": b"\x02" * 32, "facts": FACTS}
    return Token(number=TokenNumber(number), **token | changes)


async def test_token_reads_back_as_it_was_written(book: Any) -> None:
    """Facts, digest, parent and uses come back; the end is counted from now."""
    parent = await book.token()
    facts = TokenFacts(
        accessor=Accessor("a"),
        policies=("x", "y"),
        display_name="d",
        path="auth/token/create",
        meta={"k": "v"},
        created_ms=1,
        creation_ttl_s=2,
        explicit_max_ttl_s=3,
        period_s=4,
        renewable=False,
        num_uses=5,
        entity_id="e",
        renewed_ms=6,
    )
    token = plain(77, parent=parent, uses_left=5, digest=bytes(range(32)), facts=facts)
    assert await book.store.add_token(token, ttl_s=60)
    read = await book.store.token(token.number)
    assert read == plain(77, parent=parent, uses_left=5, digest=bytes(range(32)), facts=facts, expires_ms=read.expires_ms)
    assert read.expires_ms == book.store.now_ms() + 60_000


async def test_token_ends_at_its_time(book: Any) -> None:
    """From the moment of its end on it is not found, not listed, not renewed and not used."""
    number, forever = await book.token(ttl_s=10, uses=5), await book.token()
    await book.shift(9)
    assert await book.store.token(number) is not None
    await book.shift(1)
    assert await book.store.token(number) is None
    assert [token.number for token in await book.store.tokens(after=TokenNumber(0), limit=9)] == [forever]
    assert not await book.store.renew_token(number, ttl_s=10, facts=FACTS)
    assert await book.store.use_token(number) is None


async def test_tokens_are_listed_in_pages(book: Any) -> None:
    """By number, beyond the last one seen."""
    numbers = [await book.token() for _ in range(3)]
    assert [token.number for token in await book.store.tokens(after=TokenNumber(0), limit=2)] == numbers[:2]
    assert [token.number for token in await book.store.tokens(after=numbers[1], limit=2)] == numbers[2:]


async def test_child_of_an_ended_token_is_not_made(book: Any) -> None:
    """A parent that ended meanwhile, or ran out, has no more children."""
    ended, expired = await book.token(), await book.token(ttl_s=1)
    await book.store.end_tokens([ended], children=TokenEnd.WITH_CHILDREN)
    await book.shift(1)
    for parent in (ended, expired, TokenNumber(4711)):
        assert not await book.store.add_token(plain(78, parent=parent), ttl_s=None)
    assert await book.store.token(TokenNumber(78)) is None


async def test_renewal_moves_the_end_and_keeps_the_digest(book: Any) -> None:
    """The new end is counted from now; facts are those given."""
    number = await book.token(ttl_s=10)
    before = await book.store.token(number)
    await book.shift(5)
    renewal = await book.store.renew_token(number, ttl_s=60, facts=FACTS)
    after = await book.store.token(number)
    assert after.expires_ms == renewal.expires_ms == book.store.now_ms() + 60_000
    assert list(renewal.shortened) == []
    assert (after.digest, after.facts) == (before.digest, FACTS)


async def test_renewal_that_shortens_a_token_shortens_its_leases(book: Any) -> None:
    """A lease never outlives its token, and one that ends before is left alone."""
    token = await book.token(ttl_s=7200)
    long, short = await book.active(token, due_in_ms=HOUR_MS), await book.active(token, due_in_ms=10_000)
    reserved, other = await book.reserved(token, due_in_ms=HOUR_MS), await book.active(await book.token())
    assert await book.store.renew_token(token, ttl_s=60, facts=FACTS)
    now = book.store.now_ms()
    due = [(await book.lease(number)).due_ms - now for number in (long, short, reserved, other)]
    assert due == [60_000, 10_000, HOUR_MS, HOUR_MS]


async def ends_in_s(book: Any, *numbers: TokenNumber) -> list[float | None]:
    """How many seconds tokens have left; None for ever."""
    ends = [(await book.store.token(number)).expires_ms for number in numbers]
    return [None if end is None else (end - book.store.now_ms()) / 1_000 for end in ends]


async def test_child_ends_with_its_parent_at_the_latest(book: Any) -> None:
    """Whatever it was made for; one that ends before, or whose parent never ends, is left alone."""
    root = await book.token()
    parent = await book.token(parent=root, ttl_s=60)
    longer, endless = await book.token(parent=parent, ttl_s=3_600), await book.token(parent=parent)
    shorter = await book.token(parent=parent, ttl_s=10)
    grandchild = await book.token(parent=longer, ttl_s=3_600)
    assert await ends_in_s(book, parent, longer, endless, shorter, grandchild) == [60, 60, 60, 10, 60]
    assert await ends_in_s(book, await book.token(parent=root, ttl_s=3_600), await book.token(parent=root)) == [3_600, None]


async def test_child_is_renewed_up_to_the_end_of_its_parent(book: Any) -> None:
    """So it gets more when its parent was renewed before."""
    parent = await book.token(ttl_s=60)
    child = await book.token(parent=parent, ttl_s=10)
    renewal = await book.store.renew_token(child, ttl_s=3_600, facts=FACTS)
    assert renewal.expires_ms == book.store.now_ms() + 60_000
    assert (await book.store.renew_token(parent, ttl_s=600, facts=FACTS)).shortened == []
    assert await ends_in_s(book, parent, child) == [600, 60]
    await book.store.renew_token(child, ttl_s=300, facts=FACTS)
    assert await ends_in_s(book, child) == [300]


async def test_renewal_that_shortens_a_token_shortens_its_descendants(book: Any) -> None:
    """All generations and their leases, in the same commit; what ends before is left alone with its own."""
    parent = await book.token(ttl_s=7_200)
    child = await book.token(parent=parent, ttl_s=3_600)
    grandchild, brief = await book.token(parent=child, ttl_s=3_600), await book.token(parent=child, ttl_s=30)
    stranger = await book.token(ttl_s=3_600)
    before = await book.store.token(grandchild)
    leases = [await book.active(number) for number in (child, grandchild, stranger)]
    renewal = await book.store.renew_token(parent, ttl_s=60, facts=FACTS)
    assert list(renewal.shortened) == [child, grandchild]
    assert await ends_in_s(book, parent, child, grandchild, brief, stranger) == [60, 60, 60, 30, 3_600]
    assert [(await book.lease(lease)).due_ms - book.store.now_ms() for lease in leases] == [60_000, 60_000, HOUR_MS]
    after = await book.store.token(grandchild)
    assert (after.facts, after.digest, after.parent) == (before.facts, before.digest, child)


async def test_uses_are_taken_one_by_one(book: Any) -> None:
    """Each use answers what is left; past the last there is none."""
    number = await book.token(uses=2)
    assert [await book.store.use_token(number) for _ in range(3)] == [1, 0, None]
    assert await book.store.use_token(await book.token()) is None
    assert (await book.store.token(number)).uses_left == 0


async def test_ending_a_token_ends_its_leases_in_the_same_step(book: Any) -> None:
    """Its active leases become revoking and due now; those of others, and intents under way, stay."""
    token, other = await book.token(), await book.token()
    active, reserved, theirs = await book.active(token), await book.reserved(token), await book.active(other)
    assert list(await book.store.end_tokens([token, TokenNumber(4711)], children=TokenEnd.WITH_CHILDREN)) == [token]
    lease = await book.lease(active)
    assert (lease.state, lease.due_ms) == (LeaseState.REVOKING, book.store.now_ms())
    assert await book.state(reserved) is LeaseState.RESERVED
    assert await book.state(theirs) is LeaseState.ACTIVE
    assert await book.store.token(token) is None


async def test_lease_of_an_ended_token_can_still_be_finished(book: Any) -> None:
    """Its revocation goes on to the end without the token."""
    token = await book.token()
    number = await book.active(token)
    await book.store.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await book.moved(number, LeaseState.REVOKING, LeaseState.GONE)
    assert list(await book.store.list_paths()) == []


async def test_children_end_with_their_parent(book: Any) -> None:
    """All generations end, with their leases; each is named once."""
    root = await book.token()
    parent = await book.token(parent=root)
    child = await book.token(parent=parent)
    grandchild = await book.token(parent=child)
    number = await book.active(grandchild)
    assert list(await book.store.end_tokens([parent, child], children=TokenEnd.WITH_CHILDREN)) == [parent, child, grandchild]
    assert await book.state(number) is LeaseState.REVOKING
    assert await book.store.token(root) is not None


async def test_children_can_be_left_as_orphans(book: Any) -> None:
    """They live on without a parent, and say so; their own children stay theirs."""
    parent = await book.token(ttl_s=3600)
    child = await book.token(parent=parent, ttl_s=60)
    grandchild = await book.token(parent=child)
    assert list(await book.store.end_tokens([parent], children=TokenEnd.ORPHAN_CHILDREN)) == [parent]
    orphan = await book.store.token(child)
    assert (orphan.parent, orphan.facts.orphan) == (NO_TOKEN, True)
    assert orphan.expires_ms == book.store.now_ms() + 60_000
    assert (await book.store.token(grandchild)).parent == child


async def test_parent_and_child_that_end_together_leave_only_orphans_of_others(book: Any) -> None:
    """A child that is named itself ends, though children are otherwise spared."""
    parent = await book.token()
    child, spared = await book.token(parent=parent), await book.token(parent=parent)
    assert list(await book.store.end_tokens([parent, child], children=TokenEnd.ORPHAN_CHILDREN)) == [parent, child]
    assert (await book.store.token(spared)).facts.orphan


async def test_expired_tokens_end_with_children_and_leases(book: Any) -> None:
    """What has run out is found, the earliest first, and takes its children along; a lease of it is due, and nobody has ended it."""
    late, soon = await book.token(ttl_s=20), await book.token(ttl_s=10)
    child = await book.token(parent=soon)
    number = await book.active(child)
    spared = await book.active(child)
    await book.moved(spared, LeaseState.ACTIVE, LeaseState.GRACE, due_in_ms=HOUR_MS, stage=Stage.LOGIN_OFF)
    await book.token(ttl_s=1000)
    await book.token()
    assert list(await book.store.end_expired_tokens(9)) == []
    await book.shift(20)
    # Whoever claimed it may have died.
    [claimed] = await book.store.claim_due((LeaseState.ACTIVE,), limit=9, hold_ms=HOUR_MS)
    assert claimed.number == number
    assert list(await book.store.end_expired_tokens(1)) == [soon, child]
    assert await book.state(number) is LeaseState.ACTIVE
    [due] = await book.store.claim_due((LeaseState.ACTIVE, LeaseState.GRACE), limit=9, hold_ms=HOUR_MS)
    assert (due.number, await book.state(spared)) == (number, LeaseState.GRACE)
    assert list(await book.store.end_expired_tokens(9)) == [late]


@pytest.mark.parametrize("children", list(TokenEnd))
async def test_ending_nothing_changes_nothing(book: Any, children: TokenEnd) -> None:
    """An empty list, or tokens that are not there, are no error."""
    await book.token()
    assert list(await book.store.end_tokens([], children=children)) == []
    assert list(await book.store.end_tokens([TokenNumber(4711)], children=children)) == []


async def test_tokens_with_many_live_leases_are_found_page_by_page(book: Any) -> None:
    """What is live counts, as for the limits: reserved to stuck; pages follow each other up to the last."""
    tokens = [await book.token() for _ in range(5)]
    for token, count in zip(tokens, (0, 2, 3, 1, 4), strict=True):
        for _ in range(count):
            await book.active(token)
    await book.gone(await book.active(tokens[3]))
    await book.moved(await book.active(tokens[1]), LeaseState.ACTIVE, LeaseState.STUCK)
    pages, after = [], NO_TOKEN
    while after is not None:
        page = await book.store.crowded_tokens(3, after=after, limit=2)
        pages.append(dict(page.live))
        after = page.last
    assert pages == [{tokens[1]: 3}, {tokens[2]: 3}, {tokens[4]: 4}]
    assert await book.store.crowded_tokens(1, after=tokens[4], limit=2) == CrowdedTokens({}, None)


async def test_paths_with_many_live_leases_are_found(book: Any) -> None:
    """By their name, with the count that the limit of a role rests on."""
    token = await book.token()
    for path, count in (("m/creds/a", 1), ("m/creds/b", 3), ("m/creds/c", 2)):
        for _ in range(count):
            await book.active(token, path)
        await book.pooled(path)
    assert await book.store.crowded_paths(2) == {"m/creds/b": 3, "m/creds/c": 2}
    assert await book.store.crowded_paths(4) == {}


async def heads(book: Any, *numbers: TokenNumber, generations: int = 9) -> list[TokenNumber | None]:
    found = [await book.store.head_of_token(number, generations=generations) for number in numbers]
    return [None if head is None else head.number for head in found]


async def test_head_of_a_token(book: Any) -> None:
    """The one without a parent that it descends from, itself where it has none; looked for over so many generations."""
    head, other = await book.token(ttl_s=60), await book.token()
    child = await book.token(parent=head)
    grandchild = await book.token(parent=child)
    assert await heads(book, head, child, grandchild, other, TokenNumber(1)) == [head, head, head, other, None]
    assert await heads(book, head, child, grandchild, generations=1) == [head, head, None]
    assert (await book.store.head_of_token(grandchild, generations=2)) == await book.store.token(head)
    await book.store.end_tokens([child], children=TokenEnd.ORPHAN_CHILDREN)
    assert await heads(book, head, child, grandchild) == [head, None, grandchild]
    await book.shift(61)
    assert await heads(book, head, grandchild) == [None, None]


async def test_head_far_up(book: Any) -> None:
    """A long line costs one question, and the bound is exact."""
    line = [await book.token()]
    for _ in range(50):
        line.append(await book.token(parent=line[-1]))
    assert await heads(book, line[-1], generations=50) == [line[0]]
    assert await heads(book, line[-1], generations=49) == [None]
