"""Prepared users: refilled, handed out, given back, drained."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from broker.errors import (
    AuditUnavailable,
    DatabaseUnavailable,
    LimitExceeded,
    OutcomeUnknown,
    PermissionDenied,
    StoreUnavailable,
)
from broker.leases import pump
from broker.model import LeaseState
from broker.store.words import TokenEnd
from broker.testing.broker import until
from broker.testing.engine import FAIL

PATH = "database/creds/pooled"


@pytest.fixture
async def pooled(rig: Any) -> Any:
    """The rig with a role `pooled` and its four prepared users."""
    await rig.role("pooled", prepared_users=4)
    await rig.fill()
    rig.passed.clear()
    return rig


async def test_nothing_in_the_pool_can_log_in(pooled: Any) -> None:
    """Prepared users exist in the database and none has its login on; their passwords are sealed in the store."""
    accounts = pooled.server().accounts
    assert len(accounts) == 4
    assert not any(account.can_login for account in accounts.values())
    assert all(lease.facts.password is not None for lease in await pooled.leases(LeaseState.PREPARED))


async def test_promise_1_a_handed_out_user_is_active_before_it_can_log_in(pooled: Any, token: Any) -> None:
    """When a login is turned on, its lease is active in the store and its request on disc."""
    seen: list[Any] = []

    async def look() -> None:
        seen.append((len(await pooled.leases(LeaseState.ACTIVE)), pooled.entries()[-1]["request"]["path"]))

    pooled.do("before main.enable", look)
    issued = await pooled.issue(token, role="pooled")
    assert seen == [(1, PATH)]
    assert "before main.create" not in pooled.passed
    assert (await pooled.lease(issued.lease_id)).facts.password is None
    await pooled.check([issued])
    assert pooled.can_log_in(issued)


async def test_hits_misses_and_leases_are_counted(pooled: Any, token: Any) -> None:
    """Four hits and then a miss make five issued leases."""
    await asyncio.gather(*(pooled.issue(token, role="pooled") for _ in range(5)))
    registry = pooled.boot.parts.metrics.registry
    labels = {"role": "pooled"}
    assert registry.get_sample_value("broker_prepared_hits_total", labels) == 4
    assert registry.get_sample_value("broker_prepared_misses_total", labels) == 1
    assert registry.get_sample_value("broker_leases_issued_total", labels) == 5


async def test_a_refilled_pool_serves_again(pooled: Any, token: Any) -> None:
    """A pool that ran empty and was refilled serves from what was made since."""
    await asyncio.gather(*(pooled.issue(token, role="pooled") for _ in range(5)))
    await pooled.fill()
    pooled.passed.clear()
    await pooled.issue(token, role="pooled")
    assert "before main.create" not in pooled.passed


async def test_takers_at_once_get_different_users(pooled: Any, token: Any) -> None:
    """However many ask at once, nobody shares a user, and all are served."""
    answers = await asyncio.gather(*(pooled.issue(token, role="pooled") for _ in range(9)))
    assert len({one.username for one in answers}) == 9
    await pooled.check(answers)


async def test_a_user_that_another_process_took_is_passed_over(pooled: Any, token: Any) -> None:
    """A prepared user in the window that was claimed or drained meanwhile costs a try, not the request."""
    lease = (await pooled.leases(LeaseState.PREPARED))[0]
    await pooled.boot.pools.drain(PATH, None)
    role = pooled.boot.catalog.role("pooled")
    window = pooled.boot.pools._window(role)
    window.ready.append(lease)
    issued = await pooled.issue(token, role="pooled")
    assert issued.username != lease.facts.username
    assert pooled.can_log_in(issued)


async def test_an_audit_log_that_fails_at_barrier_one_uses_a_user_up(pooled: Any, token: Any) -> None:
    """A claim without its request entry is revoked, its login never turned on."""
    pooled.boot.device.flushes_left = 0
    with pytest.raises(AuditUnavailable):
        await pooled.issue(token, role="pooled")
    assert "before main.enable" not in pooled.passed
    pooled.heal()
    await pooled.settle_down()
    assert len(await pooled.leases(LeaseState.GONE)) == 1
    await pooled.check([])


async def test_promise_5_a_hand_out_whose_answer_cannot_be_recorded_is_revoked(pooled: Any, token: Any) -> None:
    """When the audit log fails after the login was turned on, the login ends and the caller hears no password."""

    def break_it() -> None:
        pooled.boot.device.flushes_left = 0

    pooled.do("after main.enable", break_it)
    with pytest.raises(AuditUnavailable):
        await pooled.issue(token, role="pooled")
    await pooled.expire()
    assert not any(account.can_login for account in pooled.server().accounts.values())
    pooled.heal()
    await pooled.settle_down()
    await pooled.check([])


async def test_a_store_that_cannot_claim_leaves_the_user_prepared(pooled: Any, token: Any) -> None:
    """A refused claim changes nothing, and the user is there for the next one."""
    pooled.fail("before store.hand_out", StoreUnavailable(), times=1)
    with pytest.raises(StoreUnavailable):
        await pooled.issue(token, role="pooled")
    answers = [await pooled.issue(token, role="pooled") for _ in range(4)]
    assert "before main.create" not in pooled.passed
    await pooled.check(answers)


async def test_a_login_that_cannot_be_turned_on_is_revoked(pooled: Any, token: Any) -> None:
    """The caller hears the database's error; the user, perhaps turned on, is removed."""
    pooled.fail("after main.enable", DatabaseUnavailable(), times=1)
    with pytest.raises(DatabaseUnavailable):
        await pooled.issue(token, role="pooled")
    await pooled.settle_down()
    await pooled.check([])
    assert await pooled.leases(LeaseState.ACTIVE) == []
    assert await pooled.boot.sqlite.pool_size(PATH) == 3


async def test_a_database_that_is_away_uses_up_no_users(pooled: Any, token: Any) -> None:
    """While the breaker is open the pool stays whole, in the store and in the window."""
    pooled.fail("before main.disable", DatabaseUnavailable())
    pooled.fail("before main.create", DatabaseUnavailable())
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable):
            await pooled.issue(token)
    for _ in range(8):
        with pytest.raises(DatabaseUnavailable):
            await pooled.issue(token, role="pooled")
    assert await pooled.boot.sqlite.pool_size(PATH) == 4
    pooled.heal()
    pooled.clock.advance(60_000)
    pooled.passed.clear()
    answers = [await pooled.issue(token, role="pooled") for _ in range(4)]
    assert "before main.create" not in pooled.passed
    await pooled.settle_down()
    await pooled.check(answers)


async def test_a_refused_ask_gives_its_user_back(rig: Any, token: Any) -> None:
    """Asks over a limit use up no prepared users: with room again, the pool still serves."""
    await rig.role("pooled", prepared_users=4, max_leases=1)
    await rig.fill()
    first = await rig.issue(token, role="pooled")
    for _ in range(10):
        with pytest.raises(LimitExceeded):
            await rig.issue(token, role="pooled")
    rig.passed.clear()
    await rig.boot.revoker.revoke(first.lease_id)
    await rig.issue(token, role="pooled")
    assert "before main.create" not in rig.passed


async def test_a_token_that_ends_between_look_and_claim(pooled: Any, token: Any) -> None:
    """The claim is refused and the user stays prepared."""
    await pooled.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    with pytest.raises(PermissionDenied):
        await pooled.issue(token, role="pooled")
    assert await pooled.boot.sqlite.pool_size(PATH) == 4


async def test_a_token_that_ends_between_claim_and_login(pooled: Any, token: Any) -> None:
    """Its lease is revoked once the enabling call is over; a login that was turned on late does not stay on."""
    gate = pooled.hold("before main.enable")
    asking = asyncio.create_task(pooled.issue(token, role="pooled"))
    await gate.entered.wait()
    await pooled.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await pooled.expire()
    assert "before main.disable" not in pooled.passed, "revocation waits for the call that is under way"
    gate.opened.set()
    issued = await asking
    pooled.clock.advance(1_000)
    await pooled.settle_down(rounds=2)
    assert not pooled.can_log_in(issued)
    await pooled.check([issued])


async def test_a_caller_that_leaves_before_the_claim_costs_no_user(pooled: Any, token: Any) -> None:
    """A cancelled ask that still waited for its turn leaves the user prepared and within reach."""
    gate = pooled.hold("before store.hand_out")
    asking = [asyncio.create_task(pooled.issue(token, role="pooled"))]
    await gate.entered.wait()
    for _ in range(2):
        asking.append(asyncio.create_task(pooled.issue(token, role="pooled")))
        await _started(pooled)
    third = asking.pop()
    third.cancel()
    await asyncio.wait([third])
    gate.opened.set()
    answers = await asyncio.gather(*asking)
    await pooled.handed_out()
    assert await pooled.boot.sqlite.pool_size(PATH) == 2
    answers += [await pooled.issue(token, role="pooled") for _ in range(2)]
    assert "before main.create" not in pooled.passed
    await pooled.check(answers)


async def _started(rig: Any) -> None:
    """Lets tasks run until none can go on without a thread or a gate."""
    for _ in range(50):
        await asyncio.sleep(0)
    await rig.boot.sqlite.barrier()


async def test_a_caller_that_leaves_during_the_call_gets_its_lease_revoked(pooled: Any, token: Any) -> None:
    """A user whose login was turned on for somebody who has left is removed, not kept for its whole time."""
    gate = pooled.hold("before main.enable")
    asking = asyncio.create_task(pooled.issue(token, role="pooled"))
    await gate.entered.wait()
    asking.cancel()
    await asyncio.wait([asking])
    pooled.heal()
    gate.opened.set()
    await pooled.settle_down()
    assert await pooled.leases(LeaseState.ACTIVE) == []
    await pooled.check([])


async def test_users_of_an_old_revision_are_never_handed_out(pooled: Any, token: Any) -> None:
    """From the moment a role is changed its former users are passed over; the refill replaces them."""
    old = {lease.facts.username for lease in await pooled.leases(LeaseState.PREPARED)}
    await pooled.role("pooled", revocation_statements="changed")
    answers = await asyncio.gather(*(pooled.issue(token, role="pooled") for _ in range(4)))
    assert not old & {one.username for one in answers}
    await pooled.fill()
    await pooled.settle_down()
    assert not old & set(pooled.server().accounts)
    assert await pooled.boot.sqlite.pool_size(PATH) == 4
    await pooled.check(answers)


@pytest.mark.parametrize("size", [0, 2, 7])
async def test_a_pool_is_resized(pooled: Any, size: int) -> None:
    """A role with another number of users gets just so many, and keeps those it has."""
    old = set(pooled.server().accounts)
    await pooled.role("pooled", prepared_users=size, default_ttl=60, max_leases=9)
    await pooled.fill()
    await pooled.settle_down()
    now = set(pooled.server().accounts)
    assert len(now) == size
    assert now <= old or now > old


async def test_a_role_that_moved_gives_no_users_of_its_former_database(pooled: Any, token: Any) -> None:
    """From the moment a role leads to another connection, users within reach on the old one are passed over."""
    await pooled.connection("other")
    await pooled.issue(token, role="pooled")
    await pooled.role("pooled", db_name="other")
    assert pooled.can_log_in(await pooled.issue(token, role="pooled"), "other")
    assert "before other.enable" not in pooled.passed


async def test_users_made_before_a_role_got_other_lifetimes_are_handed_out(pooled: Any, token: Any) -> None:
    """A role with another TTL gives its old users out for the new time, from the moment of the change."""
    old = {lease.facts.username for lease in await pooled.leases(LeaseState.PREPARED)}
    await pooled.role("pooled", default_ttl=60)
    issued = await pooled.issue(token, role="pooled")
    assert issued.username in old
    assert issued.ttl_s == 60


async def test_a_user_that_is_handed_out_during_a_drain_stays(pooled: Any, token: Any) -> None:
    """A user claimed between the drain's look and its move is its caller's, not the drain's."""
    issued: list[Any] = []

    async def claim() -> None:
        pooled.plans.clear()
        issued.append(await pooled.issue(token, role="pooled"))

    pooled.do("before store.move", claim)
    await pooled.boot.pools.drain(PATH, None)
    await pooled.settle_down()
    assert pooled.can_log_in(issued[0])
    assert await pooled.boot.sqlite.pool_size(PATH) == 0


async def test_a_deleted_roles_pool_is_drained(pooled: Any) -> None:
    """Nothing of a deleted role's pool stays, also when the role was deleted just before a crash."""
    await pooled.boot.catalog.delete_role("pooled")
    await pooled.crash_and_recover()
    await pooled.fill()
    await pooled.settle_down()
    assert pooled.server().accounts == {}


async def test_a_pool_moves_to_a_connection_that_was_made_anew(pooled: Any, token: Any) -> None:
    """Users of a deleted connection are drained over it, and the new one of that name gets its own."""
    old = set(pooled.server().accounts)
    await pooled.boot.catalog.delete_connection("main")
    await pooled.fill()
    await pooled.connection()
    await pooled.fill()
    await pooled.settle_down()
    assert not old & set(pooled.server().accounts)
    pooled.passed.clear()
    await pooled.issue(token, role="pooled")
    assert "before main.create" not in pooled.passed


@pytest.mark.parametrize(("used", "made"), [(1, 0), (4, 4)])
async def test_a_refill_gives_way_until_the_pool_is_low(pooled: Any, token: Any, used: int, made: int) -> None:
    """While a request is under way a pool that is short of little waits, and one that is low is refilled all the same."""
    for _ in range(used):
        await pooled.issue(token, role="pooled")
    gate = pooled.hold("before main.create")
    asking = asyncio.create_task(pooled.issue(token))
    await gate.entered.wait()
    assert await pooled.boot.refill.run() == made
    gate.opened.set()
    await asking
    await pooled.fill()
    assert await pooled.boot.sqlite.pool_size(PATH) == 4


@pytest.mark.parametrize("point", ["before main.prepare", "after main.prepare", "before store.prepare", "after store.prepare"])
async def test_a_refill_that_fails_leaves_nothing(rig: Any, point: str) -> None:
    """Whatever a failed batch has made is removed, and a later one fills the pool."""
    error = StoreUnavailable() if "store" in point else DatabaseUnavailable()
    rig.fail(point, error, times=1)
    await rig.role("pooled", prepared_users=4)
    await rig.boot.refill.run()
    await rig.settle_down()
    rig.clock.advance(1_000)
    await rig.fill()
    await rig.settle_down()
    await rig.check([])
    assert await rig.boot.sqlite.pool_size(PATH) == 4


async def test_one_role_that_cannot_be_filled_does_not_hold_the_others(rig: Any) -> None:
    """A role whose statements fail is logged, and the next one gets its users."""
    await rig.role("bad", prepared_users=2, creation_statements=FAIL)
    await rig.role("pooled", prepared_users=2)
    await rig.boot.refill.run()
    assert await rig.boot.sqlite.pool_size(PATH) == 2


async def test_a_refill_that_keeps_failing_writes_little(rig: Any) -> None:
    """A role whose batch failed waits, doubling to five minutes, then tries one user; what it leaves stays small."""
    await rig.role("bad", prepared_users=100, creation_statements=FAIL)
    rig.passed.clear()
    for _ in range(600):
        await rig.boot.refill.run()
        rig.clock.advance(1_000)
    assert rig.passed.count("before main.prepare") == 10
    # While some are still being ended, one may change its state between the looks at two states.
    await rig.settle_down()
    assert len(await rig.leases()) == rig.settings.refill_batch + 9


async def test_a_role_put_right_is_refilled_at_once(rig: Any) -> None:
    """A new revision of the role, or of its connection, ends the wait; success ends the caution."""
    await rig.role("pooled", prepared_users=4, creation_statements=FAIL)
    for _ in range(5):
        await rig.boot.refill.run()
        rig.clock.advance(5_000)
    assert await rig.boot.refill.run() == 0
    await rig.role("pooled", creation_statements="make")
    assert await rig.boot.refill.run() == 4
    await rig.role("pooled", prepared_users=8)
    rig.fail("before main.prepare", DatabaseUnavailable(), times=1)
    assert await rig.boot.refill.run() == 0
    assert await rig.boot.refill.run() == 0
    await rig.connection(username="root")
    assert await rig.boot.refill.run() == 4


async def test_a_refill_after_a_failure_tries_one_user_first(rig: Any) -> None:
    """One user alone shows that the role can be filled again, and then the rest follows."""
    await rig.role("pooled", prepared_users=4)
    rig.fail("before main.prepare", DatabaseUnavailable(), times=1)
    await rig.boot.refill.run()
    rig.clock.advance(1_000)
    assert [await rig.boot.refill.run() for _ in range(2)] == [1, 3]


async def test_a_database_that_is_left_alone_gets_no_refill(pooled: Any, token: Any) -> None:
    """While the breaker is open a short pool writes no intents."""
    await pooled.issue(token, role="pooled")
    pooled.fail("before main.create", DatabaseUnavailable())
    pooled.fail("before main.disable", DatabaseUnavailable())
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable):
            await pooled.issue(token)
    pooled.passed.clear()
    assert await pooled.boot.refill.run() == 0
    assert "before store.prepare" not in pooled.passed


async def test_a_user_that_the_database_lost_costs_a_try(pooled: Any, token: Any) -> None:
    """A prepared user that somebody dropped is passed over and revoked; its taker gets the next one."""
    lost = (await pooled.leases(LeaseState.PREPARED))[0].facts.username
    del pooled.server().accounts[lost]
    issued = await pooled.issue(token, role="pooled")
    assert "before main.create" not in pooled.passed
    await pooled.settle_down()
    assert await pooled.boot.sqlite.pool_size(PATH) == 2
    await pooled.check([issued])


async def test_a_pool_that_the_database_lost_is_made_anew(pooled: Any, token: Any) -> None:
    """After a database was set back every ask is answered, by a user made on demand, and the pool is given up and refilled."""
    pooled.server().accounts.clear()
    answers = [await pooled.issue(token, role="pooled") for _ in range(3)]
    assert all(pooled.can_log_in(issued) for issued in answers)
    assert pooled.passed.count("before main.enable") == 2
    await pooled.settle_down()
    assert await pooled.boot.sqlite.pool_size(PATH) == 0
    await pooled.fill()
    pooled.passed.clear()
    await pooled.issue(token, role="pooled")
    assert "before main.create" not in pooled.passed
    await pooled.check(answers)


async def test_a_second_batch_waits_until_it_is_as_large_as_the_first(pooled: Any, token: Any, monkeypatch: Any) -> None:
    """Two that are under way leave one waiting; another that joins it starts the second batch, and all are served."""
    monkeypatch.setattr(pump, "_PATIENCE_S", 60)
    gate = pooled.hold("before main.enable")
    asking = [asyncio.create_task(pooled.issue(token, role="pooled")) for _ in range(2)]
    await gate.entered.wait()
    asking.append(asyncio.create_task(pooled.issue(token, role="pooled")))
    await _started(pooled)
    assert len(await pooled.leases(LeaseState.ACTIVE)) == 2
    asking.append(asyncio.create_task(pooled.issue(token, role="pooled")))

    async def both_began() -> bool:
        return len(await pooled.leases(LeaseState.ACTIVE)) == 4

    await until(both_began)
    gate.opened.set()
    await pooled.check(await asyncio.gather(*asking))


async def test_a_batch_that_takes_long_holds_up_nobody(pooled: Any, token: Any) -> None:
    """Two that the database keeps waiting do not keep a third one waiting, which alone is fewer than they are."""
    gate = pooled.hold("before main.enable")
    slow = [asyncio.create_task(pooled.issue(token, role="pooled")) for _ in range(2)]
    await gate.entered.wait()
    pooled.heal()
    async with asyncio.timeout(30):
        await pooled.issue(token, role="pooled")
    assert not any(task.done() for task in slow)
    gate.opened.set()
    await pooled.check(await asyncio.gather(*slow))


async def test_one_of_two_batches_that_takes_long_holds_up_nobody(rig: Any, token: Any, monkeypatch: Any) -> None:
    """Who comes while two batches are under way is served though one of them hangs after the other has ended."""
    monkeypatch.setattr(pump, "_PATIENCE_S", 0.3)
    await rig.role("pooled", prepared_users=8)
    await rig.fill()
    gates = [asyncio.Event(), asyncio.Event()]
    waiting, arrived = iter(gates), asyncio.Semaphore(0)

    async def wait() -> None:
        arrived.release()
        if (gate := next(waiting, None)) is not None:
            await gate.wait()

    rig.do("before main.enable", wait)
    batches = []
    for size in (1, 2):
        batches.append([asyncio.create_task(rig.issue(token, role="pooled")) for _ in range(size)])
        await arrived.acquire()
    third = asyncio.create_task(rig.issue(token, role="pooled"))
    await _started(rig)
    gates[0].set()
    await asyncio.gather(*batches[0])
    async with asyncio.timeout(30):
        await third
    assert not any(task.done() for task in batches[1])
    gates[1].set()
    await rig.check([*await asyncio.gather(*batches[0], *batches[1]), third.result()])


async def test_a_caller_that_leaves_as_it_is_answered_gets_its_lease_revoked(pooled: Any, token: Any, monkeypatch: Any) -> None:
    """A caller that is cancelled after its answer and before it could hear it leaves no lease behind."""
    answer = pump.HandoutItem.answer

    def leaving(item: Any, refusal: Any) -> None:
        answer(item, refusal)
        asking.cancel()

    monkeypatch.setattr(pump.HandoutItem, "answer", leaving)
    asking = asyncio.create_task(pooled.issue(token, role="pooled"))
    await asyncio.wait([asking])
    assert asking.cancelled()
    await pooled.settle_down()
    assert await pooled.leases(LeaseState.ACTIVE) == []
    await pooled.check([])


async def test_a_caller_that_leaves_beside_another_gets_its_lease_revoked(pooled: Any, token: Any) -> None:
    """While the lease of one caller who left is taken back, another of the same batch leaves: it was answered, or loses its lease."""
    login = pooled.hold("before main.enable")
    first, second = [asyncio.create_task(pooled.issue(token, role="pooled")) for _ in range(2)]
    await login.entered.wait()
    first.cancel()
    await asyncio.wait([first])
    back = pooled.hold("before store.move")
    login.opened.set()
    await back.entered.wait()
    second.cancel()
    await asyncio.wait([second])
    pooled.heal()
    back.opened.set()
    await pooled.settle_down()
    answered = [] if second.cancelled() else [second.result()]
    assert len(await pooled.leases(LeaseState.ACTIVE)) == len(answered)
    await pooled.check(answered)


async def test_a_hand_out_whose_answer_cannot_be_made_is_revoked(pooled: Any, token: Any) -> None:
    """Whatever keeps the response entry from being made, the login that was turned on for it ends."""

    def broken(_: Any) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pooled.boot.issuer.issue(replace(pooled.ask(token, "pooled"), response_entry=broken))
    await pooled.settle_down()
    assert await pooled.leases(LeaseState.ACTIVE) == []
    await pooled.check([])


@pytest.mark.parametrize("point", ["before store.hand_out", "after store.hand_out"])
async def test_a_claim_that_may_have_happened_is_taken_back(pooled: Any, token: Any, point: str) -> None:
    """A claim whose outcome is unknown leaves no active lease that nobody heard of, and no user in doubt to be handed out."""
    pooled.fail(point, OutcomeUnknown(), times=1)
    with pytest.raises(OutcomeUnknown):
        await pooled.issue(token, role="pooled")
    await pooled.settle_down()
    assert await pooled.leases(LeaseState.ACTIVE) == []
    assert await pooled.boot.sqlite.pool_size(PATH) == 3
    await pooled.check([])
