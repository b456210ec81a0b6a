"""Conformance: what every store does with a lease in its grace. Only the protocol is used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.model import LeaseNumber, LeaseState, Stage, TokenNumber
from broker.store.words import Backlog, Limits, Refusal, TokenEnd

HOUR_MS = 3_600_000
PATH = "database/creds/app"


async def spared(book: Any, token: TokenNumber, *, stage: Stage = Stage.LOGIN_OFF) -> LeaseNumber:
    """A lease in its grace, which lasts an hour."""
    number = await book.active(token, due_in_ms=0)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.GRACE, due_in_ms=HOUR_MS, stage=stage)
    return LeaseNumber(number)


Ending = Callable[[Any, TokenNumber], Awaitable[object]]
ENDINGS: dict[str, Ending] = {
    "path": lambda book, _token: book.store.end_under(PATH),
    "connection": lambda book, _token: book.store.end_at(1),
    "token": lambda book, token: book.store.end_tokens([token], children=TokenEnd.WITH_CHILDREN),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_whoever_ends_leases_ends_those_in_their_grace(book: Any, ending: Ending) -> None:
    """They are due at once, from the first stage on."""
    token = await book.token()
    number = await spared(book, token)
    await ending(book, token)
    [lease] = await book.store.claim_due((LeaseState.REVOKING,), limit=9, hold_ms=HOUR_MS)
    assert (lease.number, lease.stage) == (number, Stage.NONE)


async def test_a_grace_outlasts_the_token_and_counts_as_live(book: Any) -> None:
    """Its user is there still, so it counts for the limits of role and token until it is gone."""
    token = await book.token(ttl_s=10)
    number = await spared(book, token)
    asked = book.reservation(token, limits=Limits(per_token=1))
    assert list(await book.store.reserve([asked])) == [Refusal.TOKEN_LIMIT]
    await book.shift(20)
    await book.store.end_expired_tokens(9)
    lease = await book.lease(number)
    assert (lease.state, lease.due_ms > book.store.now_ms()) == (LeaseState.GRACE, True)
    assert await book.store.live_size(PATH) == 1
    await book.moved(number, LeaseState.GRACE, LeaseState.REVOKING)
    await book.moved(number, LeaseState.REVOKING, LeaseState.GONE)
    assert await book.store.live_size(PATH) == 0


async def test_a_grace_frees_password_and_ask_key(book: Any) -> None:
    """What ended is handed out to nobody."""
    token, key = await book.token(), b"k" * 16
    number = await book.active(token, ask_key=key)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.GRACE, due_in_ms=HOUR_MS)
    assert await book.store.asked(key) is None
    assert (await book.lease(number)).facts.password is None


async def test_a_grace_is_backlog_only_before_the_login_is_off_and_after_its_end(book: Any) -> None:
    """Nothing is late while sessions may go on; what is put off then is."""
    token = await book.token()
    number = await book.active(token, due_in_ms=0)
    [claimed] = await book.store.claim_due((LeaseState.ACTIVE,), limit=9, hold_ms=HOUR_MS)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.GRACE, due_in_ms=HOUR_MS)
    assert await book.store.backlog(at_most=9) == Backlog(1, claimed.due_ms)
    facts = book.facts(disabled_ms=1)
    await book.moved(number, LeaseState.GRACE, LeaseState.GRACE, due_in_ms=HOUR_MS, stage=Stage.LOGIN_OFF, facts=facts)
    assert await book.store.backlog(at_most=9) == Backlog(0, None)
    await book.shift(3_600)
    assert (await book.store.backlog(at_most=9)).count == 1
    [claimed] = await book.store.claim_due((LeaseState.GRACE,), limit=9, hold_ms=HOUR_MS)
    await book.moved(number, LeaseState.GRACE, LeaseState.GRACE, due_in_ms=HOUR_MS, stage=Stage.LOGIN_OFF)
    assert await book.store.backlog(at_most=9) == Backlog(1, claimed.due_ms)
