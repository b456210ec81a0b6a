"""Sessions that may go on when the time of their lease is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.engines.protocol import Outcome, User
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest
from broker.leases import logins
from broker.leases.backlog import BacklogWatch, Overdue
from broker.leases.differences import Comparison
from broker.leases.drain import Drainer
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState, Stage
from broker.store.words import TokenEnd
from broker.testing.engine import MemoryEngine

HOUR_MS = 3_600_000
GRACE_MS = 600_000


@pytest.fixture
async def opened(rig: Any, token: Any) -> Any:
    """A lease of an hour with ten minutes of grace, and the number of a session of its user."""
    await rig.role("app", session_grace="10m")
    issued = await rig.issue(token)
    return issued, rig.server().log_in(issued.username, issued.password)


@pytest.fixture
async def spared(rig: Any, opened: Any) -> Any:
    """The same when its time is over."""
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    return opened


async def _state(rig: Any, issued: Any) -> tuple[LeaseState, Stage]:
    lease = await rig.lease(issued.lease_id)
    return lease.state, lease.stage


@pytest.mark.parametrize("prepared", [0, 2])
async def test_sessions_go_on_for_the_grace_and_no_longer(rig: Any, token: Any, prepared: int) -> None:
    """The login goes with the time of the lease, the sessions when the grace is over, and then the user; to the millisecond."""
    await rig.role("app", session_grace="10m", prepared_users=prepared)
    await rig.fill()
    issued = await rig.issue(token)
    session = rig.server().log_in(issued.username, issued.password)
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    assert not rig.server().accounts[issued.username].can_login
    rig.clock.advance(GRACE_MS - 1)
    await rig.expire()
    assert rig.server().is_open(session)
    rig.clock.advance(1)
    await rig.expire()
    assert not rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GONE
    assert issued.username not in rig.server().accounts
    [gone] = [data for entry in rig.entries() if (data := entry.get("response", {}).get("data", {})).get("time_to_dropped_ms")]
    assert (gone["reason"], gone["time_to_disabled_ms"], gone["time_to_dropped_ms"]) == ("expired", 0, GRACE_MS)


async def test_without_a_grace_all_ends_together(rig: Any, token: Any) -> None:
    """That is what a role has that says nothing; its leases are never spared."""
    issued = await rig.issue(token)
    session = rig.server().log_in(issued.username, issued.password)
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    assert not rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GONE


async def test_a_grace_follows_the_end_of_the_token_too(rig: Any) -> None:
    """A token that runs out takes its leases along as their own time would, whoever notices first."""
    await rig.role("app", session_grace="10m")
    for notices in ("expiry", "token"):
        issued = await rig.issue(await rig.token(ttl_s=60))
        session = rig.server().log_in(issued.username, issued.password)
        rig.clock.advance(60_000)
        if notices == "expiry":
            await rig.expire()
        await rig.boot.sqlite.end_expired_tokens(9)
        await rig.expire()
        assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
        rig.clock.advance(GRACE_MS - 1)
        await rig.expire()
        assert rig.server().is_open(session)
        rig.clock.advance(1)
        await rig.expire()
        assert not rig.server().is_open(session)


async def test_a_role_that_changed_or_went_changes_no_grace(rig: Any, opened: Any) -> None:
    """The lease carries it."""
    issued, session = opened
    await rig.role("app", session_grace=0)
    await rig.boot.catalog.delete_role("app")
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    assert rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GRACE


Ending = Callable[[Any, Any], Awaitable[object]]


async def _drained(rig: Any) -> None:
    drainer = Drainer(rig.boot.parts)
    await drainer.delete_role("app")
    await drainer.run()


async def _connection_drained(rig: Any) -> None:
    drainer = Drainer(rig.boot.parts)
    await drainer.delete_connection("main")
    await drainer.run()


async def _token_revoked(rig: Any, issued: Any) -> None:
    lease = await rig.lease(issued.lease_id)
    await rig.boot.sqlite.end_tokens([lease.token], children=TokenEnd.WITH_CHILDREN)


ENDINGS: dict[str, Ending] = {
    "revoked": lambda rig, issued: rig.boot.revoker.revoke(issued.lease_id),
    "revoked later": lambda rig, issued: rig.boot.revoker.start(issued.lease_id),
    "prefix": lambda rig, _: rig.boot.revoker.revoke_prefix("database/creds/app"),
    "prefix later": lambda rig, _: rig.boot.revoker.start_prefix("database"),
    "force": lambda rig, _: rig.boot.revoker.forget_prefix("database"),
    "token": _token_revoked,
    "role drained": lambda rig, _: _drained(rig),
    "connection drained": lambda rig, _: _connection_drained(rig),
}


@pytest.mark.parametrize("when", ["before its time", "in its grace", "between"])
@pytest.mark.parametrize("how", ENDINGS)
async def test_whoever_ends_a_lease_ends_its_sessions_now(rig: Any, opened: Any, how: str, when: str) -> None:
    """No grace for what was revoked; a revocation cuts short the grace that runs, also one that is just being given."""
    issued, session = opened
    if when != "before its time":
        rig.clock.advance(HOUR_MS)
    if when == "between":
        gate = rig.hold("before main.disable")
        expiring = asyncio.ensure_future(rig.expire())
        await gate.entered.wait()
        rig.heal()
        ending = asyncio.ensure_future(ENDINGS[how](rig, issued))
        while (await rig.lease(issued.lease_id)).state is not LeaseState.REVOKING:
            await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(expiring, ending)
    else:
        await rig.expire()
        await ENDINGS[how](rig, issued)
    await rig.expire()
    assert not rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GONE
    assert issued.username not in rig.server().accounts


async def test_a_forced_connection_takes_its_graces_off_the_books(rig: Any, spared: Any) -> None:
    """Nobody asks its database any more."""
    issued, _ = spared
    connection = rig.boot.catalog.connection("main")
    assert await rig.boot.revoker.forget_connections([connection.number]) == 1
    assert (await _state(rig, issued))[0] is LeaseState.GONE


async def test_lookup_tells_until_when_sessions_go_on(rig: Any, spared: Any) -> None:
    """It has ended, can't be renewed, and is no backlog."""
    issued, _ = spared
    view = await rig.boot.query.lookup(issued.lease_id)
    assert (view.state, view.stage, view.ttl_s, view.renewable) == ("grace", "login_off", 0, False)
    assert view.sessions_until_ms == view.expire_ms + GRACE_MS == rig.clock.now_ms() + GRACE_MS
    with pytest.raises(InvalidRequest, match="lease expired"):
        await rig.boot.renewer.renew(issued.lease_id, 60)
    watch = BacklogWatch(rig.boot.parts)
    await watch.look()
    assert watch.overdue == Overdue(0, 0)


@pytest.mark.parametrize("ends", ["during", "after"])
async def test_a_broker_that_dies_in_a_grace_goes_on_with_it(rig: Any, spared: Any, ends: str) -> None:
    """It ends at its time, or, where that has passed meanwhile, at once."""
    issued, session = spared
    rig.clock.advance(GRACE_MS // 2)
    await rig.crash_and_recover()
    await rig.expire()
    assert rig.server().is_open(session)
    if ends == "after":
        await rig.kill()
    rig.clock.advance(GRACE_MS // 2)
    if ends == "after":
        await rig.start()
    await rig.expire()
    assert not rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GONE


async def test_a_broker_that_was_away_gives_what_is_left(rig: Any, opened: Any) -> None:
    """The grace counts from the end of the lease, not from when somebody came to it."""
    issued, session = opened
    await rig.kill()
    rig.clock.advance(HOUR_MS + GRACE_MS - 1_000)
    await rig.start()
    await rig.expire()
    assert (await rig.boot.query.lookup(issued.lease_id)).sessions_until_ms == rig.clock.now_ms() + 1_000
    assert rig.server().is_open(session)
    rig.clock.advance(1_000)
    await rig.expire()
    assert not rig.server().is_open(session)


async def test_a_broker_that_dies_at_any_call_gives_the_grace_all_the_same(
    tmp_path: Path, make_rig: Callable[..., Awaitable[Any]]
) -> None:
    """Killed at its n-th call for every n: the next start turns the login off and lets the sessions be, and ends them in time."""
    position, died = 0, True
    while died:
        rig = await make_rig(tmp_path / str(position), LeaseSettings())
        await rig.role("app", session_grace=600)
        issued = await rig.issue(rig.owner)
        session = rig.server().log_in(issued.username, issued.password)
        rig.clock.advance(HOUR_MS)
        rig.kill_at = position
        expiring = asyncio.ensure_future(rig.expire())
        while not expiring.done() and not rig.dead:
            await asyncio.sleep(0)
        died = rig.dead
        await rig.crash_and_recover()
        await asyncio.gather(expiring, return_exceptions=True)
        await rig.expire()
        assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
        assert not rig.server().accounts[issued.username].can_login
        assert rig.server().is_open(session)
        rig.clock.advance(GRACE_MS)
        await rig.expire()
        assert not rig.server().is_open(session)
        await rig.check([issued, rig.standing])
        await rig.stop()
        position += 1
    assert position > 3


async def test_a_database_that_is_away_costs_the_grace_nothing_but_time(rig: Any, opened: Any) -> None:
    """Its login is turned off as soon as it is back, which is late; its sessions end when they would have."""
    issued, session = opened
    rig.fail("before main.disable", DatabaseUnavailable())
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.NONE)
    assert (await rig.boot.query.lookup(issued.lease_id)).revoke_error
    watch = BacklogWatch(rig.boot.parts)
    await watch.look()
    assert watch.overdue == Overdue(1, 0)
    rig.heal()
    rig.clock.advance(GRACE_MS // 2)
    await rig.expire()
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    assert rig.server().is_open(session)
    rig.clock.advance(GRACE_MS // 2)
    await rig.expire()
    assert not rig.server().is_open(session)


async def test_a_database_that_is_back_is_no_longer_what_holds_a_grace_up(rig: Any, spared: Any) -> None:
    """A lease in its grace whose login is off waits for nothing but its end."""
    await rig.issue(await rig.token(ttl_s=60))
    rig.fail("before main.disable", DatabaseUnavailable())
    rig.clock.advance(60_000)
    await rig.expire()
    issued, _ = spared
    assert (await rig.boot.query.lookup(issued.lease_id)).revoke_error
    rig.heal()
    rig.clock.advance(60_000)
    await rig.expire()
    assert not (await rig.boot.query.lookup(issued.lease_id)).revoke_error


@pytest.mark.parametrize("settings", [LeaseSettings(mass_expiry=1)])
async def test_what_is_put_off_gets_no_more_grace(rig: Any) -> None:
    """The grace counts from the end of a token that was given less time since, however often the lease was put off."""
    await rig.role("app", session_grace="10m")
    token = await rig.token(ttl_s=3_600)
    issued = await rig.issue(token)
    facts = (await rig.boot.sqlite.token(token)).facts
    await rig.boot.sqlite.renew_token(token, ttl_s=60, facts=facts)
    rig.clock.advance(60_000)
    ended_ms = rig.clock.now_ms()
    await rig.boot.sqlite.end_expired_tokens(9)
    rig.fail("before main.health", DatabaseUnavailable())
    for _ in range(3):
        await rig.expire()
        assert (
            await rig.boot.sqlite.next_due_ms((LeaseState.ACTIVE, LeaseState.GRACE), not_connections=())
            > rig.clock.now_ms() + 1_000
        )
        rig.clock.advance(10_000)
    rig.heal()
    await rig.expire()
    assert (await rig.boot.query.lookup(issued.lease_id)).sessions_until_ms == ended_ms + GRACE_MS


async def test_a_login_that_cant_be_turned_off_has_no_grace(rig: Any, opened: Any) -> None:
    """It is revoked like any other, with its failure and its remedy."""
    issued, session = opened
    rig.fail("before main.disable", EngineError("its row is locked"), times=2)
    rig.clock.advance(HOUR_MS)
    await rig.expire()
    lease = await rig.lease(issued.lease_id)
    assert (lease.state, lease.attempts, lease.facts.failure) == (LeaseState.REVOKING, 1, "its row is locked")
    await rig.settle_down()
    assert not rig.server().is_open(session)
    assert (await _state(rig, issued))[0] is LeaseState.GONE


@pytest.mark.parametrize("away", [False, True], ids=["at once", "database away first"])
async def test_a_login_that_came_back_goes_again_when_the_grace_is_over(rig: Any, spared: Any, *, away: bool) -> None:
    """Whoever turned it on meanwhile: the revocation begins at its first stage, and nobody gets in between."""
    issued, _ = spared
    rig.server().accounts[issued.username].can_login = True
    rig.clock.advance(GRACE_MS)
    if away:
        rig.fail("before main.disable", DatabaseUnavailable())
        await rig.expire()
        assert await _state(rig, issued) == (LeaseState.REVOKING, Stage.NONE)
        rig.heal()
        rig.clock.advance(60_000)
    seen: list[bool] = []
    rig.do("before main.end_sessions", lambda: seen.append(rig.server().accounts[issued.username].can_login))
    await rig.expire()
    assert seen == [False]


async def test_a_failover_that_undid_the_login_off_is_put_right_in_the_grace(rig: Any, spared: Any) -> None:
    """The login is off again at once, and the sessions go on until their time."""
    issued, session = spared
    await rig.boot.recovery.settle()
    rig.server().accounts[issued.username].can_login = True
    rig.server().timeline = "2"
    await rig.boot.recovery.settle()
    await asyncio.gather(*rig.boot.failover._running.values())
    await rig.expire()
    assert not rig.server().accounts[issued.username].can_login
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    assert rig.server().is_open(session)
    rig.clock.advance(GRACE_MS)
    await rig.expire()
    assert not rig.server().is_open(session)


async def test_nobody_gives_a_login_in_a_grace(rig: Any, spared: Any) -> None:
    """Neither a database that was restarted nor reconciling takes it for a lease whose login was lost."""
    issued, session = spared
    connection = rig.boot.catalog.connection("main")
    await rig.boot.recovery.reapply(connection.number)
    engine = await rig.boot.catalog.engine_for(connection)
    comparison = Comparison(rig.boot.parts, connection, engine)
    for pages in (comparison.users(), comparison.leases()):
        assert not [finding async for page in pages for finding in page]
    lease = await rig.lease(issued.lease_id)
    await logins.turn_on(rig.boot.parts, engine, [lease.number])
    assert not rig.server().accounts[issued.username].can_login
    assert rig.server().is_open(session)


async def test_a_login_given_while_it_is_taken_away_is_off_in_the_end(rig: Any, opened: Any) -> None:
    """Whoever gives logins back to active leases sees, before one is off, that this is none any longer."""
    issued, _ = opened
    lease = await rig.lease(issued.lease_id)
    rig.clock.advance(HOUR_MS)
    gate = rig.hold("after main.disable")
    expiring = asyncio.ensure_future(rig.expire())
    await gate.entered.wait()
    rig.heal()
    await logins.turn_on(rig.boot.parts, await rig.boot.catalog.engine(lease.connection), [lease.number])
    gate.opened.set()
    await expiring
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    assert not rig.server().accounts[issued.username].can_login


async def test_a_login_that_cant_be_taken_away_again_is_seen_to_at_once(rig: Any, opened: Any) -> None:
    """It was given while it was taken away, and the database went away then: the grace begins anew, and spares the sessions still."""
    issued, session = opened
    lease = await rig.lease(issued.lease_id)
    rig.clock.advance(HOUR_MS)
    begins = rig.hold("before store.move")
    expiring = asyncio.ensure_future(rig.expire())
    await begins.entered.wait()
    gives = rig.hold("before main.enable")
    engine = await rig.boot.catalog.engine(lease.connection)
    giving = asyncio.ensure_future(logins.turn_on(rig.boot.parts, engine, [lease.number]))
    await gives.entered.wait()
    begins.opened.set()
    await expiring
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    rig.fail("before main.disable", DatabaseUnavailable())
    gives.opened.set()
    await giving
    assert rig.server().accounts[issued.username].can_login
    rig.heal()
    await rig.expire()
    assert await _state(rig, issued) == (LeaseState.GRACE, Stage.LOGIN_OFF)
    assert not rig.server().accounts[issued.username].can_login
    assert rig.server().is_open(session)


async def test_the_engine_knows_whose_sessions_may_go_on(rig: Any, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the login goes, in the grace; no longer when it is over."""
    told: list[bool] = []
    disable = MemoryEngine.disable

    async def noted(engine: MemoryEngine, users: Sequence[User]) -> Sequence[Outcome]:
        told.extend(user.spared for user in users)
        return await disable(engine, users)

    monkeypatch.setattr(MemoryEngine, "disable", noted)
    for passes_ms in (HOUR_MS, GRACE_MS):
        rig.clock.advance(passes_ms)
        await rig.expire()
    assert told == [True, False]


async def test_many_leases_are_spared_in_one_batch(rig: Any, token: Any) -> None:
    """One call for all of them; those of other roles beside them end as ever."""
    await rig.role("spared", session_grace=600)
    some = [await rig.issue(token, role=role) for role in ("spared", "app") for _ in range(20)]
    rig.clock.advance(HOUR_MS)
    rig.passed.clear()
    await rig.expire()
    assert rig.passed.count("before main.disable") == 2
    assert rig.passed.count("before main.end_sessions") == 1
    assert [(await _state(rig, each))[0] for each in some] == [LeaseState.GRACE] * 20 + [LeaseState.GONE] * 20
