"""A server that has to be asked for sessions, and is away for an hour, as a standby may be."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import DatabaseUnavailable, InvalidRequest, UserRemains
from broker.leases import lifecycle

HOUR_MS = 3_600_000
REMEDY = ("/* on standby:5432 */ SELECT pg_terminate_backend(pid)",)


async def test_standby_away_for_an_hour_is_asked_at_a_low_rate(rig: Any, token: Any) -> None:
    """Its leases are contained at once and stuck in the end, with reason and remedy; all else goes on, and they end once it is back."""
    await rig.connection("other")
    await rig.role("elsewhere", db_name="other")
    rig.fail("before main.end_sessions", UserRemains("standby standby:5432 can't be reached", remedy=REMEDY))
    first, elsewhere = await rig.issue(token), await rig.issue(token, role="elsewhere")
    for lease in (first, elsewhere):
        await rig.boot.revoker.start(lease.lease_id)
    await rig.expire()
    assert not rig.can_log_in(first)
    assert rig.server("other").accounts == {}
    for _ in range(HOUR_MS // 5_000):
        rig.clock.advance(5_000)
        await rig.expire()
    assert rig.passed.count("before main.end_sessions") <= lifecycle.QUICK_ATTEMPTS + HOUR_MS // (lifecycle.STUCK_RETRY_MS // 2)
    (stuck,) = await rig.boot.query.stuck(10)
    assert (stuck.lease_id, stuck.revoke_error, stuck.remedy) == (
        first.lease_id,
        "standby standby:5432 can't be reached",
        REMEDY,
    )
    # Nothing of it counts against the database itself: leases are issued and contained as ever.
    second = await rig.issue(token)
    assert rig.can_log_in(second)
    await rig.boot.revoker.start(second.lease_id)
    await rig.expire()
    assert not rig.can_log_in(second)
    rig.heal()
    rig.clock.advance(2 * lifecycle.STUCK_RETRY_MS)
    await rig.expire()
    assert rig.server().accounts == {}
    await rig.check([])


async def test_lease_says_what_holds_up_its_connection(rig: Any, token: Any) -> None:
    """Where a server is refused no lease of the connection has a failure of its own; a look-up of those that are over has the reason."""
    over, other = await rig.issue(token), await rig.issue(token)
    await rig.crash_and_recover()
    refused = "the server was superseded"
    rig.fail("before main.open", DatabaseUnavailable(refused))
    await rig.boot.revoker.start(over.lease_id)
    await rig.expire()
    assert (await rig.boot.query.lookup(over.lease_id)).revoke_error == refused
    assert (await rig.boot.query.lookup(other.lease_id)).revoke_error == "", "it has still time"
    rig.heal()
    rig.clock.advance(60_000)
    await rig.expire()
    with pytest.raises(InvalidRequest, match="invalid lease"):
        await rig.boot.query.lookup(over.lease_id)
    assert rig.boot.parts.held_up == {}
