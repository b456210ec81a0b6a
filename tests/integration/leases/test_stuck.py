"""Stuck: a user that can't be removed yet is contained, told of, and tried again."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.errors import InvalidRequest
from broker.leases import lifecycle
from broker.testing.engine import DROP_OWNED, OWN


async def test_an_owner_is_contained_and_stuck_until_it_can_finish(rig: Any, token: Any) -> None:
    """What is owned is not destroyed: no login, the remedy shown, stuck in the end, and gone once the remedy was applied."""
    await rig.role("owner", creation_statements=["make", OWN])
    issued = await rig.issue(token, role="owner")
    with pytest.raises(InvalidRequest, match="owns"):
        await rig.boot.revoker.revoke(issued.lease_id)
    assert not rig.can_log_in(issued)
    for _ in range(lifecycle.QUICK_ATTEMPTS):
        rig.clock.advance(400_000)
        await rig.expire()
    (stuck,) = await rig.boot.query.stuck(10)
    assert (stuck.lease_id, stuck.state) == (issued.lease_id, "stuck")
    assert stuck.remedy == (f"take what {issued.username} owns",)
    assert stuck.revoke_error
    assert await rig.boot.query.stuck_count() == 1
    with pytest.raises(InvalidRequest, match="failed previous revocation attempts"):
        await rig.boot.renewer.renew(issued.lease_id, 0)
    rig.server().accounts[issued.username].owns = False
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
    assert await rig.boot.query.stuck_count() == 0


async def test_stuck_leases_are_told_of_once_and_measured(rig: Any, token: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning for those of a batch that became stuck, with reason and remedy; the gauges say how many, and since when the oldest."""
    await rig.role("owner", creation_statements=["make", OWN])
    first, second = [await rig.issue(token, role="owner") for _ in range(2)]
    monkeypatch.setattr(lifecycle, "QUICK_ATTEMPTS", 2)

    def stuck() -> tuple[float, float]:
        registry = rig.boot.parts.metrics.registry
        count, oldest_s = (registry.get_sample_value(f"broker_leases_stuck{end}") for end in ("", "_oldest_seconds"))
        return count, oldest_s

    with capture_logs() as lines:
        await rig.boot.revoker.start_prefix("")
        for _ in range(4):
            await rig.expire()
            rig.clock.advance(1_200_000)
    [told] = [line for line in lines if line["event"] == "leases are stuck"]
    assert (told["log_level"], told["connection"], told["leases"]) == ("warning", "main", 2)
    assert (told["path"], told["username"] in (first.username, second.username)) == ("database/creds/owner", True)
    assert (told["reason"], told["remedy"]) == ("the user owns something", f"take what {told['username']} owns")
    third = await rig.issue(token, role="owner")
    await rig.boot.revoker.start(third.lease_id)
    await rig.expire()
    rig.clock.advance(1_200_000)
    await rig.expire()
    # Nothing is due now: what is being tried again is not stuck for that moment.
    rig.boot.tidier.start()
    assert not await rig.boot.tidier.tick()
    assert stuck() == (3, 6_000)
    for issued in (first, second, third):
        rig.server().accounts[issued.username].owns = False
    await rig.settle_down()
    rig.boot.tidier.start()
    await rig.boot.tidier.tick()
    assert stuck() == (0, 0)


async def test_a_failed_revocation_starts_again_at_the_login(rig: Any, token: Any) -> None:
    """The next attempt turns the login off once more, since it may have been turned on again; the failure keeps its first time."""
    await rig.role("owner", creation_statements=["make", OWN])
    issued = await rig.issue(token, role="owner")
    began_ms = rig.clock.now_ms()
    with pytest.raises(InvalidRequest):
        await rig.boot.revoker.revoke(issued.lease_id)
    rig.server().accounts[issued.username].can_login = True
    rig.clock.advance(10_000)
    await rig.expire()
    assert not rig.can_log_in(issued)
    assert (await rig.lease(issued.lease_id)).facts.failing_since_ms == began_ms


async def test_a_role_may_say_that_owned_objects_go_too(rig: Any, token: Any) -> None:
    """With the role's word the user goes with what it owns, also after the role was deleted."""
    await rig.role("owner", creation_statements=["make", OWN], **{DROP_OWNED: True})
    issued = await rig.issue(token, role="owner")
    await rig.boot.catalog.delete_role("owner")
    await rig.boot.revoker.revoke(issued.lease_id)
    assert rig.server().accounts == {}
