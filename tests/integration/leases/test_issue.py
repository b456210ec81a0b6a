"""Issue on demand: what is durable when, what a failure leaves, and asking twice."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from broker.engines.settings import EngineSettings
from broker.errors import (
    AuditUnavailable,
    DatabaseUnavailable,
    InstructionsFailed,
    InvalidRequest,
    LimitExceeded,
    OutcomeUnknown,
    PermissionDenied,
    StoreUnavailable,
    Unavailable,
    UserNameTaken,
)
from broker.leases import pump
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState, Stage
from broker.store.words import TokenEnd
from broker.testing.engine import FAIL


async def test_promise_1_written_before_done(rig: Any, token: Any) -> None:
    """When the database first hears of a user, its lease is durable as reserved under that name."""
    seen: list[Any] = []

    async def look() -> None:
        seen.extend(await rig.leases(LeaseState.RESERVED))

    rig.do("before main.create", look)
    issued = await rig.issue(token)
    assert [lease.facts.username for lease in seen] == [issued.username]
    assert seen[0].facts.path == "database/creds/app"


async def test_promise_5_the_request_is_on_record_before_the_database_hears(rig: Any, token: Any) -> None:
    """The request entry is on disc at the first statement, the response entry when the caller hears, and neither before."""
    seen: list[list[str]] = []
    ask = rig.ask(token)

    def types() -> list[str]:
        return [entry["type"] for entry in rig.entries() if entry["request"].get("path") == "database/creds/app"]

    rig.do("before main.create", lambda: seen.append(types()))
    issued = await rig.boot.issuer.issue(ask)
    assert seen == [["request"]]
    assert types() == ["request", "response"]
    await rig.check([issued])


async def test_promise_4_no_copy_of_the_password_is_kept(rig: Any, token: Any) -> None:
    """A lease that nobody may ask for again keeps no copy of its password, neither reserved nor active."""
    kept: list[Any] = []

    async def look() -> None:
        kept.extend(await rig.leases())

    rig.do("before main.create", look)
    issued = await rig.issue(token)
    kept.append(await rig.lease(issued.lease_id))
    assert [lease.facts.password for lease in kept] == [None, None]
    assert rig.can_log_in(issued)


async def test_an_audit_log_that_fails_at_the_first_barrier_refuses(rig: Any, token: Any) -> None:
    """Without its request entry nothing reaches the database, and the intent goes away."""
    rig.boot.device.flushes_left = 0
    with pytest.raises(AuditUnavailable):
        await rig.issue(token)
    assert "before main.create" not in rig.passed
    rig.heal()
    await rig.settle_down(rounds=2)
    assert rig.server().accounts == {}
    await rig.check([])


async def test_promise_5_a_lease_whose_answer_cannot_be_recorded_is_revoked(rig: Any, token: Any) -> None:
    """When the audit log fails at the second barrier, login ends without it and the lease is gone once it writes again."""

    def break_it() -> None:
        rig.boot.device.flushes_left = 0

    rig.do("before main.create", break_it)
    with pytest.raises(AuditUnavailable):
        await rig.issue(token)
    await rig.expire()
    assert rig.server().accounts == {}
    (lease,) = await rig.leases()
    assert (lease.state, lease.stage) == (LeaseState.REVOKING, Stage.DROPPED)
    rig.heal()
    await rig.settle_down(rounds=3)
    (lease,) = await rig.leases()
    assert lease.state is LeaseState.GONE
    await rig.check([])


@pytest.mark.parametrize("error", [StoreUnavailable(), OutcomeUnknown()])
@pytest.mark.parametrize("point", ["before store.reserve", "after store.reserve", "before store.move", "after store.move"])
async def test_a_store_that_fails_at_any_step_leaves_nothing(rig: Any, token: Any, point: str, error: Exception) -> None:
    """An issue that the store fails is refused, whether it was written or not, and its user does not stay."""
    rig.fail(point, error, times=2)
    with pytest.raises(type(error)):
        await rig.issue(token)
    rig.heal()
    await rig.settle_down()
    assert rig.server().accounts == {}
    await rig.check([])


@pytest.mark.parametrize("point", ["before main.create", "after main.create"])
async def test_a_database_that_fails_while_the_user_is_made(rig: Any, token: Any, point: str) -> None:
    """An outcome that nobody knows is undone: whether the user was made or not, it is removed."""
    rig.fail(point, DatabaseUnavailable(), times=1)
    with pytest.raises(DatabaseUnavailable):
        await rig.issue(token)
    await rig.settle_down()
    assert rig.server().accounts == {}
    await rig.check([])
    assert rig.can_log_in(await rig.issue(token))


async def test_instructions_that_fail_leave_nothing(rig: Any, token: Any) -> None:
    """A role whose statements fail answers with that, and its intent goes away."""
    await rig.role("bad", creation_statements=FAIL)
    with pytest.raises(InstructionsFailed):
        await rig.issue(token, role="bad")
    await rig.settle_down()
    await rig.check([])


async def test_a_taken_name_is_left_alone(rig: Any, token: Any) -> None:
    """The lease takes another name, and the user that had it stays untouched through the clean-up."""
    taken: list[str] = []

    async def take() -> None:
        if not taken:
            (lease,) = await rig.leases(LeaseState.RESERVED)
            taken.append(lease.facts.username)
            rig.server().add(lease.facts.username, password="theirs")

    rig.do("before main.create", take)
    issued = await rig.issue(token)
    await rig.settle_down()
    assert issued.username != taken[0]
    assert rig.server().accounts[taken[0]].can_login
    assert len(await rig.leases(LeaseState.GONE)) == 1


async def test_names_that_are_all_taken_are_an_error(rig: Any, token: Any) -> None:
    """After four taken names the issue fails and says what to look at."""
    rig.fail("before main.create", UserNameTaken())
    with pytest.raises(UserNameTaken, match="username_template"):
        await rig.issue(token)
    rig.heal()
    await rig.settle_down()
    await rig.check([])


async def test_a_breaker_that_is_open_costs_no_intents(rig: Any, token: Any) -> None:
    """While a database is left alone, asks are refused, on record, and write nothing down that would have to be undone."""
    rig.fail("before main.create", DatabaseUnavailable())
    rig.fail("before main.disable", DatabaseUnavailable())
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable):
            await rig.issue(token)
    before, recorded = len(await rig.leases()), len(rig.entries())
    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await rig.issue(token)
    assert len(await rig.leases()) == before
    assert len(rig.entries()) >= recorded + 20


async def test_a_cancelled_issue_is_undone(rig: Any, token: Any) -> None:
    """A caller that leaves while its user is made leaves no user."""
    gate = rig.hold("after main.create")
    task = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    rig.heal()
    await rig.settle_down()
    assert rig.server().accounts == {}


@pytest.mark.parametrize("settings", [LeaseSettings(issue_timeout_s=0.05)])
async def test_a_hanging_database_is_answered_in_time(rig: Any, token: Any) -> None:
    """An issue over its time limit is answered with 503's error, names the connection, and is undone."""
    rig.hold("before main.create")
    with pytest.raises(DatabaseUnavailable, match="connection main"):
        await rig.issue(token)
    rig.heal()
    await rig.settle_down()
    await rig.check([])


async def test_a_token_that_ends_before_the_reservation(rig: Any, token: Any) -> None:
    """A token that ended since it was looked at gets nothing, and nothing is written down."""
    await rig.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    with pytest.raises(PermissionDenied):
        await rig.issue(token)
    assert await rig.leases() == []


async def test_a_token_that_ends_while_the_user_is_made(rig: Any, token: Any) -> None:
    """The lease never becomes active, its caller is refused, and its user goes."""
    rig.do("after main.create", lambda: rig.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN))
    with pytest.raises(PermissionDenied):
        await rig.issue(token)
    await rig.settle_down()
    assert rig.server().accounts == {}


async def test_a_lease_dies_with_its_token(rig: Any) -> None:
    """A lease is capped by its token's life, says so, and ends when the token is ended earlier."""
    token = await rig.token(ttl_s=60)
    issued = await rig.issue(token)
    assert (issued.ttl_s, issued.capped_by) == (60, "token")
    assert len(issued.warnings) == 1
    await rig.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await rig.settle_down(rounds=1)
    assert not rig.can_log_in(issued)


async def test_a_maximum_below_the_daemons_default_says_so(rig: Any, token: Any) -> None:
    """A role with a short max_ttl and no default_ttl of its own: who expects the usual hour hears that it is less, and why."""
    await rig.role("brief", max_ttl="10m")
    issued = await rig.issue(token, role="brief")
    told = 'TTL of "1h" exceeded the effective max_ttl of "10m"; TTL value is capped accordingly'
    assert (issued.ttl_s, issued.capped_by, list(issued.warnings)) == (600, "max_ttl", [told])
    rig.clock.advance(60_000)
    renewed = await rig.boot.renewer.renew(issued.lease_id, 0)
    assert (renewed.ttl_s, list(renewed.warnings)) == (540, [told.replace('"10m"', '"9m"')])


async def test_limits_name_themselves(rig: Any, token: Any) -> None:
    """A role's limit and a token's are told apart, and room made by a revocation is room."""
    await rig.role("small", max_leases=2)
    first = await rig.issue(token, role="small")
    await rig.issue(token, role="small")
    with pytest.raises(LimitExceeded) as told:
        await rig.issue(token, role="small")
    assert told.value.limit == "leases per role"
    await rig.boot.revoker.revoke(first.lease_id)
    await rig.issue(token, role="small")


@pytest.mark.parametrize("settings", [LeaseSettings(max_per_token=1)])
async def test_a_tokens_limit_is_its_own(rig: Any, token: Any) -> None:
    """Another token is not held back by the first one's limit."""
    await rig.issue(token)
    with pytest.raises(LimitExceeded) as told:
        await rig.issue(token)
    assert told.value.limit == "leases per token"
    await rig.issue(await rig.token())


@pytest.mark.parametrize("role", ["missing", "strange"])
async def test_an_ask_that_cannot_be_served_is_on_record(rig: Any, token: Any, role: str) -> None:
    """An unknown role, or one that its connection does not allow, is refused with the request entry durable."""
    await rig.connection(allowed_roles="app")
    await rig.role("strange")
    with pytest.raises(InvalidRequest, match=role):
        await rig.issue(token, role=role)
    assert rig.entries()[-1]["request"]["path"] == f"database/creds/{role}"


@pytest.mark.parametrize("role", ["app", "again", "pooled"])
@pytest.mark.parametrize(
    "point",
    [
        "before store.reserve",
        "before store.hand_out",
        "before store.prepared",
        "before store.asked",
        "before store.free_ask",
        "before main.enable",
        "before main.new_password",
        "before main.open",
    ],
)
async def test_promise_5_whatever_refuses_an_ask_is_on_record_once(rig: Any, token: Any, role: str, point: str) -> None:
    """Wherever an issue fails, its request entry is on disc when it raises, once; so it is when it does not fail there."""
    await rig.role("again", reissue=True)
    await rig.role("pooled", prepared_users=1)
    await rig.fill()
    rig.fail(point, DatabaseUnavailable() if "main" in point else StoreUnavailable(), times=1)
    ask = rig.ask(token, role)
    with contextlib.suppress(DatabaseUnavailable, StoreUnavailable):
        await rig.boot.issuer.issue(ask)
    assert _requests(rig, role) == 1


@pytest.mark.parametrize("settings", [LeaseSettings(issue_timeout_s=0.05)])
@pytest.mark.parametrize(
    ("role", "point"),
    [
        ("app", "before main.create"),
        ("again", "before store.asked"),
        ("again", "before main.create"),
        ("pooled", "before store.prepared"),
        ("pooled", "before store.hand_out"),
        ("pooled", "before main.enable"),
    ],
)
async def test_an_ask_out_of_time_is_on_record_once(rig: Any, token: Any, role: str, point: str) -> None:
    """Time that runs out while an ask waits for its turn, for a read or in the pump's lane costs it no entry."""
    await rig.role("again", reissue=True)
    await rig.role("pooled", prepared_users=4)
    await rig.fill()
    gate = rig.hold(point)
    answers = await asyncio.gather(*(rig.issue(token, role) for _ in range(3)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    gate.opened.set()
    assert _requests(rig, role) == 3


async def test_a_caller_that_left_is_on_record(rig: Any, token: Any) -> None:
    """A cancelled ask that nothing was done for yet has its request entry all the same, and stays cancelled."""
    await rig.role("again", reissue=True)
    gate = rig.hold("before store.asked")
    asking = asyncio.create_task(rig.issue(token, "again"))
    await gate.entered.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert _requests(rig, "again") == 1


async def test_an_ask_with_no_room_in_the_lane_is_on_record(rig: Any, token: Any, monkeypatch: Any) -> None:
    """Past the most that may wait for a connection, an ask is refused, on record."""
    await rig.role("pooled", prepared_users=1)
    await rig.fill()
    monkeypatch.setattr(pump, "_WAITING_MOST", 0)
    with pytest.raises(LimitExceeded):
        await rig.issue(token, "pooled")
    assert _requests(rig, "pooled") == 1
    assert await rig.boot.sqlite.pool_size("database/creds/pooled") == 1


async def test_asks_past_the_most_in_flight_write_nothing(rig: Any, token: Any) -> None:
    """While a connection makes as many users as it may, another ask is refused at once, on record, with no intent to undo."""
    begun = asyncio.Semaphore(0)
    rig.do("before main.create", begun.release)
    gate = rig.hold("before main.create")
    asking = [asyncio.create_task(rig.issue(token)) for _ in range(EngineSettings().max_in_flight)]
    for _ in asking:
        await begun.acquire()
    with pytest.raises(LimitExceeded) as told:
        await rig.issue(token)
    assert told.value.limit == "max_in_flight"
    assert len(await rig.leases()) == len(asking)
    assert _requests(rig, "app") == len(asking) + 1
    gate.opened.set()
    await rig.check(await asyncio.gather(*asking))


def _requests(rig: Any, role: str) -> int:
    """How many request entries for the role's path are on disc."""
    entries = rig.entries()
    return sum(entry["type"] == "request" and entry["request"]["path"] == f"database/creds/{role}" for entry in entries)


# asked twice ----------------------------------------------------------------------------------------------------------


async def test_the_same_key_gets_the_same_answer(rig: Any, token: Any) -> None:
    """Asked again one after the other, at once, and after a crash, a key has one user; each answer is on record."""
    first = await rig.issue(token, key="k")
    at_once = await asyncio.gather(*(rig.issue(token, key="k") for _ in range(5)))
    await rig.crash_and_recover()
    later = await rig.issue(token, key="k")
    answers = {(one.lease_id, one.username, one.password.reveal()) for one in (first, *at_once, later)}
    assert len(answers) == 1
    assert rig.can_log_in(later)
    await rig.check([first])


async def test_equal_questions_at_once_make_one_user(rig: Any, token: Any) -> None:
    """Of many equal first requests in flight one makes a user and the others hear of it."""
    answers = await asyncio.gather(*(rig.issue(token, key="k") for _ in range(8)))
    assert len({one.lease_id for one in answers}) == 1
    assert len(rig.server().accounts) == 1


async def test_a_key_belongs_to_a_token_and_a_role(rig: Any, token: Any) -> None:
    """The same key of another token, or for another role, is another question."""
    await rig.role("other")
    other = await rig.token()
    users = {
        (await rig.issue(token, key="k")).username,
        (await rig.issue(other, key="k")).username,
        (await rig.issue(token, role="other", key="k")).username,
    }
    assert len(users) == 3


async def test_promise_4_the_copy_goes_with_the_lease(rig: Any, token: Any) -> None:
    """The sealed copy is there while the lease lives and erased as soon as it ends, before anything else; the key is free then."""
    issued = await rig.issue(token, key="k")
    assert (await rig.lease(issued.lease_id)).facts.password == issued.password
    await rig.boot.revoker.start(issued.lease_id)
    assert (await rig.lease(issued.lease_id)).facts.password is None
    assert (await rig.issue(token, key="k")).lease_id != issued.lease_id


async def test_a_key_whose_lease_is_over_gets_a_new_one(rig: Any, token: Any) -> None:
    """A lease past its time is not given again, even where nobody came round to end it yet."""
    first = await rig.issue(token, key="k")
    rig.clock.advance(3_600_000)
    second = await rig.issue(token, key="k")
    assert second.lease_id != first.lease_id
    assert second.ttl_s == 3_600


async def test_a_key_does_not_turn_on_a_login_that_is_being_ended(rig: Any, token: Any) -> None:
    """Asked again while its lease is being ended, a key gets an error or another user, never the old login back."""
    issued = await rig.issue(token, key="k")
    rig.do("before main.enable", lambda: None)
    gate = rig.hold("before audit.record")
    asking = asyncio.create_task(rig.issue(token, key="k"))
    await gate.entered.wait()
    rig.plans.pop("before audit.record")
    await rig.boot.revoker.revoke(issued.lease_id)
    gate.opened.set()
    with pytest.raises(Unavailable):
        await asking
    assert "before main.enable" not in rig.passed


async def test_reissue_gives_the_living_lease(rig: Any, token: Any) -> None:
    """A role that re-issues gives the same token its lease while half its time is left, then a new one; other tokens their own."""
    await rig.role("again", reissue=True, default_ttl=100)
    first = await rig.issue(token, role="again")
    rig.clock.advance(49_000)
    second = await rig.issue(token, role="again")
    assert (second.lease_id, second.ttl_s) == (first.lease_id, 51)
    rig.clock.advance(2_000)
    third = await rig.issue(token, role="again")
    assert third.lease_id != first.lease_id
    assert (await rig.issue(await rig.token(), role="again")).lease_id not in {first.lease_id, third.lease_id}
    assert rig.can_log_in(first)


@pytest.mark.parametrize("prepared", [0, 4])
async def test_leases_made_together_do_not_end_together(rig: Any, token: Any, prepared: int) -> None:
    """With `ttl_jitter` each time to live is shortened by chance; answer, lookup and database tell the same, and it ends then."""
    await rig.role("spread", default_ttl=1_000, ttl_jitter=50, prepared_users=prepared)
    await rig.fill()
    issued = [await rig.issue(token, role="spread") for _ in range(4)]
    assert len({lease.ttl_s for lease in issued}) > 1
    for lease in issued:
        assert 500 <= lease.ttl_s <= 1_000
        assert (lease.capped_by, lease.warnings) == ("ttl_jitter" if lease.ttl_s < 1_000 else "", ())
        view = await rig.boot.query.lookup(lease.lease_id)
        assert (view.ttl_s, view.capped_by) == (lease.ttl_s, lease.capped_by)
        assert rig.server().accounts[lease.username].expires_ms == rig.clock.now_ms() + lease.ttl_s * 1_000
    first, *_, last = sorted(issued, key=lambda lease: lease.ttl_s)
    rig.clock.advance(first.ttl_s * 1_000)
    await rig.settle_down()
    assert not rig.can_log_in(first)
    assert rig.can_log_in(last)


@pytest.mark.parametrize("key", ["", "k"])
async def test_asking_again_does_not_roll_the_dice_again(rig: Any, token: Any, key: str) -> None:
    """A lease that chance made as short as can be is given again, with what it has left, while half of that is ahead."""
    await rig.role("again", reissue=not key, default_ttl=100, ttl_jitter=50)
    rig.boot.parts.chance = lambda: 0.999
    first = await rig.issue(token, role="again", key=key)
    rig.boot.parts.chance = lambda: 0.0
    rig.clock.advance(25_000)
    again = await rig.issue(token, role="again", key=key)
    assert (first.ttl_s, again.lease_id, again.ttl_s, again.capped_by) == (50, first.lease_id, 25, "ttl_jitter")
    rig.clock.advance(1_000)
    assert ((await rig.issue(token, role="again", key=key)).lease_id == first.lease_id) is bool(key)


@pytest.mark.parametrize("change", [{"db_name": "other"}, {"creation_statements": "make otherwise"}])
async def test_reissue_follows_its_role(rig: Any, token: Any, change: dict[str, str]) -> None:
    """A role that leads to another database, or makes other users, gives no lease of before again; nor is its password kept."""
    await rig.connection("other")
    await rig.role("again", reissue=True)
    first = await rig.issue(token, role="again")
    await rig.role("again", default_ttl=1_800)
    assert (await rig.issue(token, role="again")).lease_id == first.lease_id
    await rig.role("again", **change)
    second = await rig.issue(token, role="again")
    assert second.lease_id != first.lease_id
    assert rig.can_log_in(second, change.get("db_name", "main"))
    assert rig.can_log_in(first)
    assert (await rig.lease(first.lease_id)).facts.password is None


@pytest.mark.parametrize(
    ("prepared", "point"), [(0, "before store.reserve"), (0, "before main.create"), (4, "before store.hand_out")]
)
@pytest.mark.parametrize("ends", ["asker", "owner"])
async def test_a_caller_that_ended_gets_no_lease_of_another_token(
    rig: Any, token: Any, prepared: int, point: str, ends: str
) -> None:
    """Who asks and whose the lease would be, where the other lives on: both are checked, in the statement that writes the lease."""
    await rig.role("app", prepared_users=prepared)
    await rig.fill()
    asker = await rig.token(parent=token)
    ask = rig.ask(asker, owner=await rig.boot.sqlite.token(token))
    ended = {"asker": asker, "owner": token}[ends]
    rig.do(point, lambda: rig.boot.sqlite.end_tokens([ended], children=TokenEnd.ORPHAN_CHILDREN))
    with pytest.raises(PermissionDenied):
        await rig.boot.issuer.issue(ask)
    rig.heal()
    await rig.settle_down()
    assert ("before main.create" in rig.passed) is (point == "before main.create")
    assert len(rig.server().accounts) == prepared
    assert not await rig.leases(LeaseState.ACTIVE)
