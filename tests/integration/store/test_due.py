"""Conformance: due times, claims and epochs. Only the protocol is used."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from broker.model import LeaseState, Stage
from broker.secret import Secret
from broker.store.words import Backlog, Step

HOUR_MS = 3_600_000
PATH = "database/creds/app"
ACTIVE = (LeaseState.ACTIVE,)


async def test_only_what_is_due_is_claimed_oldest_first(book: Any) -> None:
    """A claim takes the longest overdue, up to its limit, and nothing before its time."""
    token = await book.token()
    late, later, soon = [await book.active(token, due_in_ms=due) for due in (1000, 2000, HOUR_MS)]
    assert list(await book.store.claim_due(ACTIVE, limit=10, hold_ms=1000)) == []
    await book.shift(2)
    assert [lease.number for lease in await book.store.claim_due(ACTIVE, limit=1, hold_ms=5000)] == [late]
    assert [lease.number for lease in await book.store.claim_due(ACTIVE, limit=10, hold_ms=5000)] == [later]
    assert await book.state(soon) is LeaseState.ACTIVE


async def test_claim_raises_the_epoch_and_pushes_the_due_time(book: Any) -> None:
    """The claimed lease comes back as it now stands, but with the due time that had come."""
    number = await book.active(await book.token(), due_in_ms=0)
    (claimed,) = await book.store.claim_due(ACTIVE, limit=1, hold_ms=7000)
    assert (claimed.number, claimed.epoch, claimed.due_ms) == (number, 1, book.store.now_ms())
    assert replace(claimed, due_ms=book.store.now_ms() + 7000) == await book.lease(number)


@pytest.mark.parametrize("token", ["there", "gone"])
async def test_what_is_put_off_waits_though_its_token_has_ended(book: Any, token: str) -> None:
    """It would come back at once for as long as whatever holds it up lasts; a later claim knows since when it has been waiting."""
    number = await book.active(await book.token(ttl_s=10))
    await book.shift(10)
    ended_ms = book.store.now_ms()
    if token == "gone":
        await book.store.end_expired_tokens(9)
    for _ in range(2):
        (claimed,) = await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS)
        assert claimed.due_ms == ended_ms
        await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=5_000, epoch=claimed.epoch)
        assert not await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS)
        await book.shift(5)


async def test_claim_of_a_dead_owner_falls_due_again(book: Any) -> None:
    """Nothing is claimed twice within the hold, and again after it."""
    await book.active(await book.token(), due_in_ms=0)
    assert len(await book.store.claim_due(ACTIVE, limit=9, hold_ms=3000)) == 1
    assert len(await book.store.claim_due(ACTIVE, limit=9, hold_ms=3000)) == 0
    await book.shift(3)
    (again,) = await book.store.claim_due(ACTIVE, limit=9, hold_ms=3000)
    assert again.epoch == 2


async def test_no_two_callers_claim_the_same_lease(book: Any) -> None:
    """Callers at the same moment share what is due."""
    token = await book.token()
    numbers = sorted([await book.active(token, due_in_ms=0) for _ in range(20)])
    claims = await asyncio.gather(*(book.store.claim_due(ACTIVE, limit=3, hold_ms=HOUR_MS) for _ in range(10)))
    assert sorted(lease.number for claim in claims for lease in claim) == numbers


async def test_claims_can_be_kept_to_a_connection_or_away_from_some(book: Any) -> None:
    """A dead database's backlog is not in the way of others'."""
    token = await book.token()
    first, second, third = [await book.active(token, connection=connection, due_in_ms=0) for connection in (1, 2, 3)]
    one = await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS, connection=2)
    assert [lease.number for lease in one] == [second]
    rest = await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS, not_connections={1})
    assert [lease.number for lease in rest] == [third]
    assert len(await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS)) == 1
    assert (await book.lease(first)).epoch == 1


async def test_one_connection_that_is_excluded_gives_nothing(book: Any) -> None:
    """A connection both asked for and excluded is excluded."""
    await book.active(await book.token(), due_in_ms=0)
    assert list(await book.store.claim_due(ACTIVE, limit=9, hold_ms=0, connection=1, not_connections=[1])) == []


async def test_oldest_first_holds_across_states_and_connections(book: Any) -> None:
    """States and connections are merged by due time."""
    token = await book.token()
    numbers = []
    for index, state in enumerate((LeaseState.REVOKING, LeaseState.STUCK, LeaseState.REVOKING, LeaseState.STUCK)):
        number = await book.reserved(token, connection=1 + index // 2)
        await book.moved(number, LeaseState.RESERVED, state, due_in_ms=index * 100)
        numbers.append(number)
    await book.shift(1)
    claimed = await book.store.claim_due([LeaseState.REVOKING, LeaseState.STUCK], limit=3, hold_ms=HOUR_MS)
    assert [lease.number for lease in claimed] == numbers[:3]


async def test_intents_fall_due_for_recovery(book: Any) -> None:
    """A reservation that is left alone is found by the same claim as everything else."""
    number = await book.reserved(await book.token(), due_in_ms=500)
    assert await book.store.next_due_ms([LeaseState.RESERVED]) == book.store.now_ms() + 500
    await book.shift(0.5)
    claimed = await book.store.claim_due([LeaseState.RESERVED, LeaseState.PREPARING], limit=9, hold_ms=1)
    assert [lease.number for lease in claimed] == [number]


async def test_next_due_is_the_earliest_of_the_states(book: Any) -> None:
    """It is None where no lease is in any of them."""
    token = await book.token()
    assert await book.store.next_due_ms(ACTIVE) is None
    await book.active(token, due_in_ms=5000)
    await book.active(token, connection=2, due_in_ms=3000)
    await book.reserved(token, due_in_ms=1)
    assert await book.store.next_due_ms(ACTIVE) == book.store.now_ms() + 3000
    assert await book.store.next_due_ms([LeaseState.STUCK]) is None
    assert await book.store.next_due_ms(ACTIVE, not_connections=[2]) == book.store.now_ms() + 5000
    assert await book.store.next_due_ms(ACTIVE, not_connections=[1, 2]) is None


async def test_due_count_looks_ahead_and_stops_at_its_most(book: Any) -> None:
    """What falls due within the span is counted, but no further than asked."""
    token = await book.token()
    for connection, due in ((1, 1000), (1, 2000), (2, 2000), (2, 9000)):
        await book.active(token, connection=connection, due_in_ms=due)
    assert await book.store.due_count(ACTIVE, within_ms=2000, at_most=100) == 3
    assert await book.store.due_count(ACTIVE, within_ms=2000, at_most=2) == 2
    assert await book.store.due_count(ACTIVE, within_ms=0, at_most=2) == 0


async def test_hasten_makes_one_connections_leases_due_now(book: Any) -> None:
    """When a database is back, what waited for it is tried at once."""
    token = await book.token()
    waiting = []
    for connection, state in ((1, LeaseState.REVOKING), (1, LeaseState.STUCK), (1, LeaseState.ACTIVE), (2, LeaseState.STUCK)):
        number = await book.reserved(token, connection=connection)
        await book.moved(number, LeaseState.RESERVED, state, due_in_ms=HOUR_MS)
        waiting.append(number)
    states = (LeaseState.REVOKING, LeaseState.STUCK)
    assert await book.store.hasten(states, connection=1) == 2
    claimed = await book.store.claim_due(states, limit=9, hold_ms=HOUR_MS)
    assert sorted(lease.number for lease in claimed) == waiting[:2]


async def test_backlog_counts_what_should_have_ended_since_its_time(book: Any) -> None:
    """What is merely active, gone or stuck does not count; a claim hides nothing, and a cap caps the count alone."""
    token, began = await book.token(), book.store.now_ms()
    assert await book.store.backlog(at_most=9) == Backlog(0, None)
    await book.active(token, due_in_ms=HOUR_MS)
    await book.gone(await book.active(token))
    await book.moved(await book.reserved(token), LeaseState.RESERVED, LeaseState.STUCK, due_in_ms=0)
    assert await book.store.backlog(at_most=9) == Backlog(0, None)
    for due_in_ms in (2_000, 1_000, 3_000):
        # What waits longest is found last.
        await book.active(token, connection=9_000 - due_in_ms, due_in_ms=due_in_ms)
    await book.reserved(token, due_in_ms=4_000)
    await book.shift(2)
    assert await book.store.backlog(at_most=9) == Backlog(2, began + 1_000)
    assert await book.store.backlog(at_most=1) == Backlog(1, began + 1_000)
    assert len(await book.store.claim_due(ACTIVE, limit=1, hold_ms=HOUR_MS)) == 1
    assert await book.store.backlog(at_most=9) == Backlog(2, began + 1_000)
    await book.shift(2)
    assert await book.store.backlog(at_most=9) == Backlog(4, began + 1_000)
    assert await book.store.backlog(at_most=3) == Backlog(3, began + 1_000)


async def test_backlog_outlasts_delays_and_retries(book: Any) -> None:
    """Put off as active, begun, failed and put off again, a lease waits since it fell due; gone or stuck it does not wait any longer."""
    number, began = await book.active(await book.token(), due_in_ms=1_000), book.store.now_ms()
    waiting = Backlog(1, began + 1_000)
    await book.shift(2)
    await book.store.claim_due(ACTIVE, limit=1, hold_ms=HOUR_MS)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=5_000)
    assert await book.store.backlog(at_most=9) == waiting
    await book.shift(5)
    (claimed,) = await book.store.claim_due(ACTIVE, limit=1, hold_ms=HOUR_MS)
    step = Step(
        numbers=[number], epoch=claimed.epoch, expect=ACTIVE, to=LeaseState.REVOKING, stage=Stage.NONE, due_in_ms=HOUR_MS
    )
    assert await book.store.step(step) == {number}
    assert await book.store.backlog(at_most=9) == waiting
    await book.moved(number, LeaseState.REVOKING, LeaseState.REVOKING, due_in_ms=1_000, attempts=1)
    assert await book.store.backlog(at_most=9) == waiting
    await book.shift(2)
    assert await book.store.backlog(at_most=9) == waiting
    await book.moved(number, LeaseState.REVOKING, LeaseState.STUCK, due_in_ms=1_000)
    assert await book.store.backlog(at_most=9) == Backlog(0, None)


async def test_a_stuck_lease_waits_only_while_it_is_tried(book: Any) -> None:
    """Then since that try was due: how long it has been stuck is no measure of how revocation keeps up."""
    number = await book.reserved(await book.token())
    await book.moved(number, LeaseState.RESERVED, LeaseState.REVOKING)
    await book.store.claim_due([LeaseState.REVOKING], limit=1, hold_ms=HOUR_MS)
    await book.moved(number, LeaseState.REVOKING, LeaseState.STUCK, due_in_ms=60_000)
    await book.shift(61)
    tried = book.store.now_ms() - 1_000
    (claimed,) = await book.store.claim_due([LeaseState.STUCK], limit=1, hold_ms=HOUR_MS)
    assert await book.store.backlog(at_most=9) == Backlog(0, None)
    await book.moved(number, LeaseState.STUCK, LeaseState.REVOKING, due_in_ms=HOUR_MS, epoch=claimed.epoch)
    assert await book.store.backlog(at_most=9) == Backlog(1, tried)
    await book.moved(number, LeaseState.REVOKING, LeaseState.GONE, due_in_ms=HOUR_MS)
    assert await book.store.backlog(at_most=9) == Backlog(0, None)


async def test_a_renewed_lease_waits_no_longer(book: Any) -> None:
    """New facts come with a new time, also where a claim had just been faster."""
    number = await book.active(await book.token(), due_in_ms=0)
    await book.store.claim_due(ACTIVE, limit=1, hold_ms=HOUR_MS)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=HOUR_MS, facts=book.facts())
    assert await book.store.backlog(at_most=9) == Backlog(0, None)


async def test_a_batch_that_is_gone_leaves_no_backlog(book: Any) -> None:
    """The last step of many at once ends their waiting."""
    token = await book.token()
    numbers = [await book.active(token, due_in_ms=0) for _ in range(3)]
    await book.store.claim_due(ACTIVE, limit=9, hold_ms=HOUR_MS)
    step = Step(numbers=numbers, epoch=1, expect=ACTIVE, to=LeaseState.GONE, stage=Stage.ABSENT, due_in_ms=HOUR_MS)
    assert len(await book.store.step(step)) == 3
    assert await book.store.backlog(at_most=9) == Backlog(0, None)


async def test_leases_of_a_connection_end_together(book: Any) -> None:
    """All its active ones and no others, due now, without password; what is being revoked keeps its place."""
    token = await book.token()
    mine = [await book.active(token, f"m/creds/{name}", facts=book.facts(password=Secret("kept"))) for name in "ab"]
    waiting = await book.reserved(token)
    await book.moved(waiting, LeaseState.RESERVED, LeaseState.REVOKING, due_in_ms=HOUR_MS)
    pooled, other = await book.pooled(), await book.active(token, connection=2)
    assert await book.store.end_at(1) == 2
    assert await book.store.end_at(1) == 0
    ended = [await book.lease(number) for number in mine]
    assert {(lease.state, lease.due_ms, lease.facts.password) for lease in ended} == {
        (LeaseState.REVOKING, book.store.now_ms(), None)
    }
    assert (await book.lease(waiting)).due_ms == book.store.now_ms() + HOUR_MS
    assert [await book.state(number) for number in (pooled, other)] == [LeaseState.PREPARED, LeaseState.ACTIVE]


async def test_the_last_end_is_that_of_active_leases(book: Any, monkeypatch: Any) -> None:
    """Of one path, read in pages, or of one connection; None where nothing is active."""
    monkeypatch.setattr("broker.store.sqlite.store._ROWS_PER_SCAN", 2)
    token, now = await book.token(), book.store.now_ms()
    assert (await book.store.last_end_ms(PATH), await book.store.last_end_at_ms(1), await book.store.live_size(PATH)) == (
        None,
        None,
        0,
    )
    for due_in_ms in (1_000, 5_000, 2_000, 3_000):
        await book.active(token, due_in_ms=due_in_ms)
    await book.moved(await book.reserved(token), LeaseState.RESERVED, LeaseState.REVOKING, due_in_ms=HOUR_MS)
    await book.pooled()
    await book.active(token, f"{PATH}/deeper", due_in_ms=8_000)
    await book.active(token, connection=2, due_in_ms=9_000)
    assert await book.store.last_end_ms(PATH) == now + 9_000
    assert await book.store.last_end_at_ms(1) == now + 8_000
    assert await book.store.live_size(PATH) == 6


async def test_a_step_without_a_time_writes_the_stage_alone(book: Any) -> None:
    """In its epoch and of what is `revoking`: state and due time stay as they are; what is anything else is left alone."""
    token = await book.token()
    number, stuck = [await book.reserved(token) for _ in range(2)]
    await book.moved(number, LeaseState.RESERVED, LeaseState.REVOKING, due_in_ms=HOUR_MS)
    await book.moved(stuck, LeaseState.RESERVED, LeaseState.REVOKING)
    await book.moved(stuck, LeaseState.REVOKING, LeaseState.STUCK, due_in_ms=HOUR_MS)
    before = [await book.lease(each) for each in (number, stuck)]
    ending = [LeaseState.REVOKING, LeaseState.STUCK]
    step = Step(
        numbers=[number, stuck],
        epoch=before[0].epoch,
        expect=ending,
        to=LeaseState.REVOKING,
        stage=Stage.SESSIONS_ENDED,
        due_in_ms=None,
    )
    assert await book.store.step(replace(step, epoch=step.epoch + 1)) == frozenset()
    assert await book.store.step(step) == {number}
    assert [await book.lease(each) for each in (number, stuck)] == [replace(before[0], stage=Stage.SESSIONS_ENDED), before[1]]
