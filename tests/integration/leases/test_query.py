"""Look up: which leases there are."""

from __future__ import annotations

from typing import Any


async def test_lists_show_live_leases(rig: Any, token: Any) -> None:
    """One level at a time; pool users are not shown; a lease's view says what it is and never its password."""
    await rig.role("pooled", prepared_users=2)
    await rig.fill()
    issued = await rig.issue(token)
    query = rig.boot.query
    assert await query.keys_under("") == ["database/"]
    assert await query.keys_under("database/creds/") == ["app/"]
    assert await query.keys_under("database/creds/app") == [issued.lease_id.rpartition("/")[2]]
    assert await query.keys_under("database/creds/nobody") == []
    view = await query.lookup(issued.lease_id)
    assert (view.state, view.ttl_s, view.renewable, view.username) == ("active", 3_600, True, issued.username)
    assert issued.password.reveal() not in repr(view)
