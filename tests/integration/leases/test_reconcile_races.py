"""Reconciling while leases are issued, handed out, renewed, revoked and expire: nothing sound is taken for a difference, or ended.

A run goes to its end while something else happens between any two of its calls, whole or half: begun at one call of the run, held at a
call of its own, let go on some calls of the run later. Which, hypothesis says; always the same ones here, others with another seed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import AuditUnavailable, BrokerError, DatabaseUnavailable, OutcomeUnknown, StoreUnavailable
from broker.leases.amend import Scope
from broker.leases.issue import Issued
from broker.leases.lifecycle import ends_ms
from broker.leases.reconcile import Reconciler
from broker.leases.report import Run
from broker.leases.settings import LeaseSettings
from broker.leases.sweep import Sweeper
from broker.model import LeaseNumber, LeaseState
from broker.store.words import TokenEnd

ROUNDS, MANY_CALLS = 20, 3
LONGEST_RUN, LONGEST_ACT = 50, 14
"""Calls of store, audit log and engine that a run, or what happens meanwhile, makes about at most."""
BRIEF_S, LONG_S, SHORT_S = 60, 7_200, 600
_PATIENCE_S = 0.2
_meanwhile: ContextVar[bool] = ContextVar("meanwhile", default=False)


@dataclass(slots=True)
class Everywhere:
    """Stands in for the rig's plans: every call of every room comes here before and after it is made."""

    at: Callable[[str], Awaitable[None]]

    def get(self, point: str, _default: object = ()) -> list[Callable[[], Awaitable[None]]]:
        return [partial(self.at, point)]

    def clear(self) -> None:
        """The rig is being stopped."""


@dataclass(slots=True)
class Interleaving:
    """What happens during a run, and where."""

    act: Callable[[], Awaitable[None]]
    begins: int
    """At which of the run's calls."""
    held: int
    """At which of its own calls it waits; 0: at none."""
    released: int
    """How many calls of the run later it goes on."""
    run_calls: int = 0
    act_calls: int = 0
    task: asyncio.Task[None] | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def at(self, _point: str) -> None:
        if _meanwhile.get():
            self.act_calls += 1
            if self.act_calls == self.held:
                self.entered.set()
                await self.opened.wait()
            return
        self.run_calls += 1
        if self.run_calls == self.begins:
            self.task = asyncio.get_running_loop().create_task(self._acts())
            # It may have to wait for this very call: then it goes on beside the run.
            entered = asyncio.ensure_future(self.entered.wait())
            await asyncio.wait([self.task, entered], timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            entered.cancel()
        if self.run_calls == self.begins + self.released:
            self.opened.set()

    async def ended(self) -> None:
        self.opened.set()
        if self.task is not None:
            await self.task

    async def _acts(self) -> None:
        _meanwhile.set(True)
        await self.act()


@dataclass(slots=True)
class Scene:
    """A rig with leases of every kind: sound ones, and one of each difference."""

    rig: Any
    answered: list[Issued] = field(default_factory=list)
    sound: dict[str, Issued] = field(default_factory=dict)
    differ: dict[str, Issued] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    """Users of which a run may say something."""
    ended: set[str] = field(default_factory=set)
    """Leases that were ended meanwhile, by their ids."""

    async def fill(self) -> None:
        rig, accounts = self.rig, self.rig.server().accounts
        await rig.role("pooled", prepared_users=4)
        await rig.fill()
        owner, brief = rig.owner, await rig.token(BRIEF_S)
        for name in ("kept", "renewed", "revoked"):
            self.sound[name] = await self._issue(owner)
        self.sound["handed out"] = await self._issue(owner, "pooled")
        self.sound["brief"] = await self._issue(brief)
        self.brief = brief
        for name in ("off", "early", "missing", "back"):
            self.differ[name] = await self._issue(owner)
        accounts[self.differ["off"].username].can_login = False
        accounts[self.differ["early"].username].expires_ms -= 1_000_000
        rig.server().remove(self.differ["missing"].username)
        back = accounts[self.differ["back"].username]
        await rig.boot.revoker.revoke(self.differ["back"].lease_id)
        accounts[self.differ["back"].username] = back
        await rig.fill()
        prepared = (await rig.leases(LeaseState.PREPARED))[0].facts.username
        accounts[prepared].can_login = True
        number = LeaseNumber(rig.boot.parts.numbers.next())
        rig.server().add("v-lost", rig.boot.parts.markers.marker(number, "v-lost"))
        rig.server().add("forged", rig.boot.parts.markers.marker(number, "another"))
        self.names = {issued.username for issued in self.differ.values()} | {prepared, "v-lost", "forged"}

    brief: Any = None

    async def _issue(self, token: Any, role: str = "app") -> Issued:
        issued: Issued = await self.rig.issue(token, role)
        self.answered.append(issued)
        return issued

    async def run(self, scope: Scope) -> Run:
        """A run that has no error."""
        run = await self.run_of(scope)
        assert [report.error for report in run.reports] == [""]
        return run

    async def run_of(self, scope: Scope) -> Run:
        reconciler = Reconciler(self.rig.boot.parts, Sweeper(self.rig.boot.parts))
        run = reconciler.start("main", scope)
        await reconciler._task  # type: ignore[misc]  # it was just started
        return run

    async def check(self, run: Run) -> None:
        """Only what differed was named; what is sound lives on to its end, what ended is gone; two more runs find all put right."""
        assert {named.username for report in run.reports for named in report.named} <= self.names
        await self.rig.settle_down()
        await self._check_sound()
        await self.run(Scope.ALL)
        await self.rig.settle_down()
        left = await self.run(Scope.NOTHING)
        assert left.reports[0].found == {"forged_marker": 1}
        await self._check_sound()
        del self.rig.server().accounts["forged"]
        await self.rig.check(self.answered)

    async def _check_sound(self) -> None:
        for name, issued in self.sound.items():
            lease = await self.rig.lease(issued.lease_id)
            account = self.rig.server().accounts.get(issued.username)
            if issued.lease_id in self.ended:
                assert (name, lease.state, account) == (name, LeaseState.GONE, None)
                continue
            if lease.facts.expires_ms <= self.rig.clock.now_ms():
                # What is tried again takes time, and it was for a minute only.
                continue
            assert (name, lease.state) == (name, LeaseState.ACTIVE)
            assert self.rig.can_log_in(issued), name
            assert account.expires_ms >= min(ends_ms(lease), lease.facts.expires_ms) - 1_000, name

    # what happens meanwhile -------------------------------------------------------------------------------------------

    async def issue(self) -> None:
        self.sound["issued meanwhile"] = await self._issue(self.rig.owner)

    async def hand_out(self) -> None:
        self.sound["handed out meanwhile"] = await self._issue(self.rig.owner, "pooled")

    async def renew(self, name: str, increment_s: int) -> None:
        await self.rig.boot.renewer.renew(self.sound[name].lease_id, increment_s)

    async def renew_differing(self, name: str, increment_s: int) -> None:
        try:
            await self.rig.boot.renewer.renew(self.differ[name].lease_id, increment_s)
        except BrokerError:
            assert name == "missing"

    async def revoke(self, name: str) -> None:
        self.ended.add(self.sound[name].lease_id)
        await self.rig.boot.revoker.revoke(self.sound[name].lease_id)

    async def revoke_differing(self, name: str) -> None:
        await self.rig.boot.revoker.revoke(self.differ[name].lease_id)

    async def expire(self) -> None:
        self.ended.add(self.sound["brief"].lease_id)
        self.rig.clock.advance(BRIEF_S * 1_000)
        await self.rig.boot.expirer.run()

    async def end_token(self) -> None:
        self.ended.add(self.sound["brief"].lease_id)
        await self.rig.boot.parts.store.end_tokens([self.brief], children=TokenEnd.WITH_CHILDREN)
        await self.rig.boot.expirer.run()

    async def refill(self) -> None:
        await self.rig.boot.refill.run()

    async def empty_pool(self) -> None:
        await self.rig.role("pooled", prepared_users=0)
        await self.rig.boot.refill.run()


ACTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "issue": Scene.issue,
    "hand out": Scene.hand_out,
    "renew": partial(Scene.renew, name="renewed", increment_s=LONG_S),
    "renew for less": partial(Scene.renew, name="renewed", increment_s=SHORT_S),
    "renew what is off": partial(Scene.renew_differing, name="off", increment_s=LONG_S),
    "renew what ends early": partial(Scene.renew_differing, name="early", increment_s=LONG_S),
    "renew what is missing": partial(Scene.renew_differing, name="missing", increment_s=LONG_S),
    "revoke": partial(Scene.revoke, name="revoked"),
    "revoke what was handed out": partial(Scene.revoke, name="handed out"),
    "revoke what is off": partial(Scene.revoke_differing, name="off"),
    "revoke what is missing": partial(Scene.revoke_differing, name="missing"),
    "expire": Scene.expire,
    "end a token": Scene.end_token,
    "refill": Scene.refill,
    "empty the pool": Scene.empty_pool,
}
WHOLE = ("issue", "hand out", "renew", "renew for less", "revoke", "revoke what was handed out", "end a token", "refill")
"""What concerns sound leases, each another, so that all of it may happen in one scene."""
_examples = itertools.count(1)


async def _whole(scene: Scene) -> None:
    for act in WHOLE:
        await ACTS[act](scene)


async def _play(rig: Any, scope: Scope, meanwhile: Callable[[Scene], Interleaving]) -> Interleaving:
    scene = Scene(rig)
    await scene.fill()
    played = meanwhile(scene)
    rig.plans = Everywhere(played.at)
    run = await scene.run(scope)
    await played.ended()
    rig.plans = {}
    await scene.check(run)
    await rig.stop()
    return played


async def test_nothing_that_happens_between_two_calls_is_a_difference(make_rig: Any, tmp_path: Path) -> None:
    """At each call of a run leases are issued, handed out, renewed and revoked: sound ones stay, the next run finds all put right."""
    position, calls = 0, 1
    while position < calls:
        position += 1
        rig = await make_rig(tmp_path / str(position), LeaseSettings(refill_batch=2))
        played = await _play(
            rig, Scope.NOTHING, lambda scene, at=position: Interleaving(partial(_whole, scene), begins=at, held=0, released=1)
        )
        calls = played.run_calls


@pytest.mark.parametrize("scope", list(Scope), ids=lambda scope: scope.name.lower())
@settings(
    max_examples=ROUNDS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)  # the rig is made anew for each
@given(
    act=st.sampled_from(sorted(ACTS)),
    moments=st.tuples(st.integers(1, LONGEST_RUN), st.integers(0, LONGEST_ACT), st.integers(1, LONGEST_RUN)),
)
async def test_nothing_that_happens_meanwhile_is_a_difference(
    make_rig: Any, tmp_path: Path, scope: Scope, act: str, moments: tuple[int, int, int]
) -> None:
    """Whatever is half done to leases at any moment of a run: sound ones stay, ended ones go, and the next run finds all put right."""
    rig = await make_rig(tmp_path / str(next(_examples)), LeaseSettings(refill_batch=2))
    await _play(rig, scope, lambda scene: Interleaving(partial(ACTS[act], scene), *moments))


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("before main.", DatabaseUnavailable("away")),
        ("after main.", DatabaseUnavailable("away")),
        ("before store.", StoreUnavailable("away")),
        ("after store.", OutcomeUnknown("perhaps")),
        ("before audit.", AuditUnavailable("full")),
    ],
)
async def test_what_fails_at_any_call_is_put_right_by_the_next_run(
    make_rig: Any, tmp_path: Path, calls: str, error: Exception
) -> None:
    """Database, store or audit log fail once, at each call that a run makes: it may say so; nothing sound is harmed, nothing stays."""
    position, failed = 0, True
    while failed:
        position, passed, failed = position + 1, 0, False

        async def fail(point: str, at: int = position) -> None:
            nonlocal passed, failed
            passed += point.startswith(calls)
            if passed == at and not failed:
                failed = True
                raise error

        rig = await make_rig(tmp_path / str(position), LeaseSettings(refill_batch=2))
        scene = Scene(rig)
        await scene.fill()
        rig.plans = Everywhere(fail)
        run = await scene.run_of(Scope.ALL)
        rig.plans = {}
        await scene.check(run)
        await rig.stop()
    assert position > MANY_CALLS


# one moment each ----------------------------------------------------------------------------------------------------------


async def _off(rig: Any, token: Any) -> Issued:
    """A lease whose user's login is off."""
    issued: Issued = await rig.issue(token)
    rig.server().accounts[issued.username].can_login = False
    return issued


async def _ends_alike(rig: Any, issued: Issued) -> bool:
    """Whether database and store let the user log in until the same moment."""
    lease = await rig.lease(issued.lease_id)
    return bool(abs(rig.server().accounts[issued.username].expires_ms - lease.facts.expires_ms) < 1_000)


async def test_login_is_not_turned_on_in_the_middle_of_a_renewal(rig: Any) -> None:
    """The database has the new end, the store not yet: the login would get the former one. It waits for the renewal."""
    issued = await _off(rig, await rig.token())
    scene, renewals = Scene(rig), list[asyncio.Task[Any]]()
    gate = rig.hold("after main.extend")

    async def begin() -> None:
        if not renewals:
            renewals.append(asyncio.create_task(rig.boot.renewer.renew(issued.lease_id, LONG_S)))
            await gate.entered.wait()

    rig.do("before audit.record", begin)
    running = asyncio.ensure_future(scene.run(Scope.SAFE))
    await asyncio.wait([running], timeout=_PATIENCE_S)
    assert not rig.can_log_in(issued)
    gate.opened.set()
    await renewals[0]
    run = await running
    assert (run.reports[0].found, run.reports[0].amended) == ({"login_off": 1}, {"login_off": 1})
    assert await _ends_alike(rig, issued)
    assert rig.can_log_in(issued)


async def test_lease_is_not_compared_in_the_middle_of_a_renewal(rig: Any) -> None:
    """A renewal for less shortens the database's end first: for a moment the user seems to end early."""
    issued = await rig.issue(await rig.token())
    gate = rig.hold("after main.extend")
    renewal = asyncio.create_task(rig.boot.renewer.renew(issued.lease_id, SHORT_S))
    await gate.entered.wait()
    run = await Scene(rig).run(Scope.SAFE)
    assert not run.reports[0].found
    gate.opened.set()
    await renewal
    assert await _ends_alike(rig, issued)


async def test_renewal_waits_for_a_login_that_is_being_turned_on(rig: Any) -> None:
    """Else the end that comes with the login, the former one, would be the last that the database hears."""
    issued = await _off(rig, await rig.token())
    gate = rig.hold("before main.enable")
    run = asyncio.create_task(Scene(rig).run(Scope.SAFE))
    await gate.entered.wait()
    renewal = asyncio.create_task(rig.boot.renewer.renew(issued.lease_id, LONG_S))
    done, _ = await asyncio.wait([renewal], timeout=_PATIENCE_S)
    assert not done
    gate.opened.set()
    assert (await run).reports[0].amended == {"login_off": 1}
    assert (await renewal).ttl_s == LONG_S
    assert await _ends_alike(rig, issued)


async def test_lease_that_is_renewed_meanwhile_is_told_once(rig: Any) -> None:
    """Leases are read by their ends, and a renewal moves one behind those that were read."""
    issued = await _off(rig, await rig.token())
    pages = list[int]()

    async def renew() -> None:
        pages.append(len(pages) + 1)
        if pages[-1] == 2:
            await rig.boot.renewer.renew(issued.lease_id, LONG_S)

    rig.do("before store.leases_at", renew)
    [report] = (await Scene(rig).run(Scope.NOTHING)).reports
    assert len(pages) > 2
    assert (report.found, report.compared.leases) == ({"login_off": 1}, 1)


async def test_renewals_of_one_lease_take_turns(rig: Any) -> None:
    """What the last one answered is what database and store have, however they meet."""
    issued = await rig.issue(await rig.token())
    gate = rig.hold("after main.extend")
    first = asyncio.create_task(rig.boot.renewer.renew(issued.lease_id, SHORT_S))
    await gate.entered.wait()
    second = asyncio.create_task(rig.boot.renewer.renew(issued.lease_id, LONG_S))
    await asyncio.wait([second], timeout=_PATIENCE_S)
    assert rig.passed.count("before main.extend") == 1
    gate.opened.set()
    assert ((await first).ttl_s, (await second).ttl_s) == (SHORT_S, LONG_S)
    assert await _ends_alike(rig, issued)


async def test_login_of_an_ended_lease_is_not_turned_on(rig: Any) -> None:
    """It was revoked after it was found: nothing is sent to the database for it."""
    issued = await _off(rig, await rig.token())
    rig.do("before audit.record", lambda: rig.boot.revoker.start(issued.lease_id))
    run = await Scene(rig).run(Scope.SAFE)
    assert (run.reports[0].found, run.reports[0].amended) == ({"login_off": 1}, {})
    assert "before main.enable" not in rig.passed


async def test_login_is_not_left_on_by_who_came_after_a_revocation(rig: Any) -> None:
    """A revocation looked who is busy before we were, and turns the login off before ours is turned on: it is turned off again."""
    token = await rig.token(LONG_S)
    issued = await _off(rig, token)
    stored = await rig.boot.sqlite.token(token)
    # It ends with its token now, sooner than it says itself.
    await rig.boot.sqlite.renew_token(token, ttl_s=BRIEF_S, facts=stored.facts)
    ending, enabling, dropping = (rig.hold(point) for point in ("before store.step", "before main.enable", "before main.drop"))
    claims = list[int]()

    async def claim() -> None:
        if not claims:
            rig.clock.advance(BRIEF_S * 1_000)
            claims.append(await rig.boot.expirer.run())
            await ending.entered.wait()

    rig.do("before audit.record", claim)
    run = asyncio.create_task(Scene(rig).run(Scope.SAFE))
    await enabling.entered.wait()
    ending.opened.set()
    await dropping.entered.wait()
    enabling.opened.set()
    assert not (await run).reports[0].amended
    assert not rig.can_log_in(issued)
    dropping.opened.set()
    await rig.settle_down()
    assert (await rig.lease(issued.lease_id)).state is LeaseState.GONE
