"""Leases that pile up are told of, by role and by token, beside the hot path."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.errors import StoreUnavailable
from broker.leases import bursts
from broker.leases.bursts import BurstWatch
from broker.leases.settings import LeaseSettings

QUIET_MS = 10_000


def _count(rig: Any, holder: str) -> float:
    return float(rig.boot.parts.metrics.registry.get_sample_value("broker_lease_bursts_total", {"holder": holder}) or 0)


async def _sweep(rig: Any, watch: BurstWatch) -> list[Any]:
    """The warnings of one look at everything."""
    rig.clock.advance(QUIET_MS)
    with capture_logs() as lines:
        for _ in range(10):
            await watch.look()
    return [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.parametrize("settings", [LeaseSettings(burst_alarm=4)])
async def test_leases_that_pile_up_are_told_of_once(rig: Any, monkeypatch: Any) -> None:
    """The role and the token are named, and the token only by its accessor; every token is looked at, a page at a time."""
    monkeypatch.setattr(bursts, "_TOKENS_A_TIME", 2)
    watch = BurstWatch(rig.boot.parts)
    tokens = [await rig.token() for _ in range(5)]
    await rig.role("web")
    assert await _sweep(rig, watch) == []
    for token in (tokens[0], tokens[4]):
        for _ in range(5):
            await rig.issue(token)
    await rig.issue(tokens[1], role="web")
    told = await _sweep(rig, watch)
    assert [line["event"] for line in told] == ["live leases of a role pile up", *["live leases of a token pile up"] * 2]
    assert (told[0]["path"], told[0]["live"]) == ("database/creds/app", 10)
    assert (told[1]["accessor"], told[1]["display_name"], told[1]["live"]) == ("a", "token", 5)
    await rig.issue(tokens[4])
    assert await _sweep(rig, watch) == []
    assert (_count(rig, "role"), _count(rig, "token")) == (1, 2)


@pytest.mark.parametrize("settings", [LeaseSettings(burst_alarm=4)])
async def test_leases_that_ended_are_forgotten(rig: Any, token: Any) -> None:
    """So the same token is told of again when it does it again."""
    watch = BurstWatch(rig.boot.parts)
    await _sweep(rig, watch)
    for _ in range(2):
        for _ in range(5):
            await rig.issue(token)
        assert len(await _sweep(rig, watch)) == 2
        await rig.boot.revoker.revoke_prefix("database")
        assert await _sweep(rig, watch) == []


@pytest.mark.parametrize("settings", [LeaseSettings(burst_alarm=0)])
async def test_no_alarm_asks_nothing(rig: Any, token: Any) -> None:
    """Switched off, the store is not even asked."""
    watch = BurstWatch(rig.boot.parts)
    rig.passed.clear()
    assert await _sweep(rig, watch) == []
    assert rig.passed == []


@pytest.mark.parametrize("settings", [LeaseSettings(burst_alarm=4)])
async def test_a_store_that_can_not_be_read_is_asked_again(rig: Any, token: Any) -> None:
    """A look that was cut short loses no token that it had seen."""
    watch = BurstWatch(rig.boot.parts)
    await _sweep(rig, watch)
    for _ in range(6):
        await rig.issue(token)
    rig.fail("before store.crowded_tokens", StoreUnavailable(), times=1)
    rig.clock.advance(QUIET_MS)
    with pytest.raises(StoreUnavailable):
        await watch.look()
    assert [line["event"] for line in await _sweep(rig, watch)] == ["live leases of a token pile up"]
