"""A role or connection that is deleted with its leases: what is told before, and that none of them is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.engines.protocol import Outcome, User
from broker.errors import InvalidRequest
from broker.leases.drain import KIND, Drainer
from broker.leases.outlook import Holdings, Outlooks
from broker.leases.settings import LeaseSettings
from broker.model import LeaseState, Terms
from broker.testing.broker import until
from broker.testing.engine import MemoryEngine

UNTIL_MS = 35_000
"""How long an order stands with the default issue timeout."""


@pytest.fixture
async def drainer(rig: Any) -> Drainer:
    return Drainer(rig.boot.parts)


async def _carried_out(rig: Any, drainer: Drainer) -> None:
    """Lets time pass until no order stands, and everything to its end."""
    for _ in range(UNTIL_MS // 1_000 + 2):
        await drainer.run()
        await rig.settle_down()
        rig.clock.advance(1_000)
    assert drainer._standing == {}
    assert [document for document in await rig.boot.sqlite.changes_since(0) if document.kind == KIND] == []


async def _state(rig: Any, issued: Any) -> LeaseState:
    return (await rig.lease(issued.lease_id)).state


async def test_draining_a_role_ends_its_leases_and_no_others(rig: Any, token: Any, drainer: Drainer) -> None:
    """Also those that were handed out; its prepared users go as with any deletion."""
    await rig.role("other")
    await rig.role("app", prepared_users=2)
    await rig.fill()
    mine = [await rig.issue(token) for _ in range(3)]
    others = await rig.issue(token, role="other")
    await drainer.delete_role("app")
    with pytest.raises(InvalidRequest, match="unknown role"):
        await rig.issue(token)
    await rig.fill()
    await _carried_out(rig, drainer)
    assert [await _state(rig, issued) for issued in mine] == [LeaseState.GONE] * 3
    assert set(rig.server().accounts) == {others.username}
    assert rig.can_log_in(others)


async def test_draining_a_connection_ends_what_is_left_anywhere(rig: Any, token: Any, drainer: Drainer) -> None:
    """Of every role, and at the cluster that it led to before; other connections keep theirs."""
    await rig.role("web")
    await rig.connection("second")
    await rig.role("apart", db_name="second")
    old = await rig.issue(token)
    await rig.connection(connection_url="new")
    new, apart = await rig.issue(token, role="web"), await rig.issue(token, role="apart")
    await drainer.delete_connection("main")
    await _carried_out(rig, drainer)
    assert [await _state(rig, issued) for issued in (old, new)] == [LeaseState.GONE] * 2
    assert rig.can_log_in(apart, "second")


@pytest.mark.parametrize("point", ["new_password", "create"])
@pytest.mark.parametrize("kind", ["role", "connection"])
async def test_an_issue_that_began_before_is_drained_too(rig: Any, token: Any, drainer: Drainer, kind: str, point: str) -> None:
    """However late it comes to its end within its time limit, and whether it has its number yet or not."""
    gate = rig.hold(f"before main.{point}")
    asking = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    await (drainer.delete_role("app") if kind == "role" else drainer.delete_connection("main"))
    await drainer.run()
    rig.clock.advance(29_000)
    gate.opened.set()
    issued = await asking
    await _carried_out(rig, drainer)
    assert await _state(rig, issued) is LeaseState.GONE


async def test_an_issue_from_before_two_deletions_is_drained(rig: Any, token: Any, drainer: Drainer) -> None:
    """The second, which finds no role, takes the place of the first; the role is made anew in between the one and the other's work."""
    gate = rig.hold("before main.new_password")
    asking = asyncio.create_task(rig.issue(token))
    await gate.entered.wait()
    await drainer.delete_role("app")
    await drainer.delete_role("app")
    await rig.role("app")
    rig.heal()
    new = await rig.issue(token)
    gate.opened.set()
    issued = await asking
    await _carried_out(rig, drainer)
    assert await _state(rig, issued) is LeaseState.GONE
    assert rig.can_log_in(new)


async def test_a_role_made_anew_keeps_its_leases(rig: Any, token: Any, drainer: Drainer) -> None:
    """The order is about the one that was deleted."""
    old = await rig.issue(token)
    await drainer.delete_role("app")
    await rig.role("app")
    new = await rig.issue(token)
    await _carried_out(rig, drainer)
    assert await _state(rig, old) is LeaseState.GONE
    assert rig.can_log_in(new)


@pytest.mark.parametrize("kind", ["role", "connection"])
async def test_an_answer_that_was_lost_may_be_asked_for_again(rig: Any, token: Any, drainer: Drainer, kind: str) -> None:
    """What was deleted without draining, or twice with it, is drained all the same."""
    issued = await rig.issue(token)
    if kind == "role":
        await rig.boot.catalog.delete_role("app")
        for _ in range(2):
            await drainer.delete_role("app")
    else:
        await rig.boot.catalog.delete_connection("main")
        for _ in range(2):
            await drainer.delete_connection("main")
    await _carried_out(rig, drainer)
    assert await _state(rig, issued) is LeaseState.GONE


async def test_what_was_never_there_is_deleted_and_drained_to_nothing(rig: Any, drainer: Drainer) -> None:
    """As deleting it is no mistake."""
    await drainer.delete_role("none")
    await drainer.delete_connection("none")
    await _carried_out(rig, drainer)


async def test_a_drain_goes_on_when_its_caller_leaves(rig: Any, token: Any, drainer: Drainer) -> None:
    """The deletion that was begun has its order carried out."""
    issued = await rig.issue(token)
    gate = rig.hold("after store.change_documents")
    deleting = asyncio.create_task(drainer.delete_role("app"))
    await gate.entered.wait()
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    gate.opened.set()

    async def ordered() -> bool:
        return bool(drainer._standing)

    await until(ordered)
    await _carried_out(rig, drainer)
    assert await _state(rig, issued) is LeaseState.GONE


@pytest.mark.parametrize("kind", ["role", "connection"])
async def test_a_crash_at_any_call_loses_no_order(tmp_path: Path, make_rig: Any, kind: str) -> None:
    """Killed at its n-th call for every n, either nothing was deleted, or its leases end without anybody asking again."""
    position, died = 0, True
    while died:
        rig = await make_rig(tmp_path / str(position), LeaseSettings())
        rig.kill_at = position

        async def doing(rig: Any = rig) -> None:
            drainer = Drainer(rig.boot.parts)
            await (drainer.delete_role("app") if kind == "role" else drainer.delete_connection("main"))
            for _ in range(2):
                await drainer.run()
                rig.clock.advance(40_000)

        task = asyncio.ensure_future(doing())
        await asyncio.wait([task])
        died = task.exception() is not None
        await rig.crash_and_recover()
        kept = "app" in rig.boot.catalog.role_names() if kind == "role" else "main" in rig.boot.catalog.connection_names()
        drainer = Drainer(rig.boot.parts)
        await drainer.take_over()
        rig.clock.advance(40_000)
        await drainer.run()
        await rig.fill()
        await rig.settle_down()
        assert (await _state(rig, rig.standing) is LeaseState.ACTIVE) == kept, position
        assert [document for document in await rig.boot.sqlite.changes_since(0) if document.kind == KIND] == []
        await rig.check([rig.standing])
        await rig.stop()
        position += 1
    assert position > 3


async def test_an_outlook_of_a_role_says_what_it_holds(rig: Any, token: Any) -> None:
    """Leases in every live state, users kept ready, and the latest end; of a deleted one what is left."""
    await rig.role("app", prepared_users=3)
    await rig.fill()
    first, second = await rig.issue(token), await rig.issue(token)
    await rig.boot.renewer.renew(first.lease_id, 7_200)
    await rig.boot.revoker.start(second.lease_id)
    outlooks = Outlooks(rig.boot.parts)
    outlook = await outlooks.of_role("app")
    assert (outlook.exists, outlook.connection, outlook.roles) == (True, "main", {})
    assert outlook.holdings == Holdings(2, 1)
    assert outlook.last_end_ms == (await rig.lease(first.lease_id)).due_ms
    await rig.settle_down()
    await rig.boot.catalog.delete_role("app")
    outlook = await outlooks.of_role("app")
    assert (outlook.exists, outlook.connection, outlook.holdings) == (False, "", Holdings(1, 1))
    outlook = await outlooks.of_role("none")
    assert (outlook.exists, outlook.holdings, outlook.last_end_ms) == (False, Holdings(0, 0), None)


async def test_an_outlook_of_a_connection_says_which_roles_hold_what(rig: Any, token: Any) -> None:
    """With what is left of it at a former cluster; roles of others are not named."""
    await rig.role("web", prepared_users=2)
    await rig.connection("second")
    await rig.role("apart", db_name="second")
    await rig.fill()
    first = await rig.issue(token)
    await rig.connection(connection_url="new")
    await rig.issue(token)
    rig.clock.advance(1_000)
    last = await rig.issue(token, role="web")
    await rig.issue(token, role="apart")
    outlook = await Outlooks(rig.boot.parts).of_connection("main")
    assert (outlook.exists, outlook.holdings) == (True, Holdings(3, 2))
    assert outlook.roles == {"app": Holdings(2, 0), "web": Holdings(1, 2)}
    assert outlook.last_end_ms == (await rig.lease(last.lease_id)).due_ms
    await rig.boot.catalog.delete_connection("main")
    outlook = await Outlooks(rig.boot.parts).of_connection("main")
    assert (outlook.exists, outlook.holdings) == (False, Holdings(3, 2))
    assert await _state(rig, first) is LeaseState.ACTIVE
    outlook = await Outlooks(rig.boot.parts).of_connection("none")
    assert (outlook.exists, outlook.holdings, outlook.roles, outlook.last_end_ms) == (False, Holdings(0, 0), {}, None)


async def test_looking_ahead_changes_nothing(rig: Any, token: Any) -> None:
    """No write reaches the store."""
    await rig.issue(token)
    rig.passed.clear()
    await Outlooks(rig.boot.parts).of_role("app")
    await Outlooks(rig.boot.parts).of_connection("main")
    reads = {"live_size", "pool_size", "last_end_ms", "last_end_at_ms", "tally"}
    assert {point.rpartition(".")[2] for point in rig.passed} == reads


async def test_a_lease_knows_how_it_is_revoked(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the statements and options that its role had when it was made: another role of the name, or none, changes nothing."""
    heard: list[Terms] = []
    release = MemoryEngine.release

    async def listening(engine: MemoryEngine, users: Sequence[User]) -> Sequence[Outcome]:
        heard.extend(user.terms for user in users)
        return await release(engine, users)

    monkeypatch.setattr(MemoryEngine, "release", listening)
    await rig.role("app", revocation_statements=["first"])
    first, second = [await rig.issue(token) for _ in range(2)]
    await rig.role("app", revocation_statements=["second"])
    await rig.boot.revoker.revoke(first.lease_id)
    await rig.boot.catalog.delete_role("app")
    await rig.crash_and_recover()
    await rig.boot.revoker.revoke(second.lease_id)
    assert [terms.revocation for terms in heard] == [("first",), ("first",)]
    assert rig.server().accounts == {}
