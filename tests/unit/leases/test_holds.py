"""Who changes a login at this moment."""

from __future__ import annotations

import asyncio

import pytest

from broker.leases.holds import Holds
from broker.model import LeaseNumber

ONE, TWO = LeaseNumber(1), LeaseNumber(2)


def test_a_login_is_given_as_long_as_anybody_gives_it() -> None:
    """Two calls may give a lease a login; it is let go with the last of them, also when one fails."""
    holds = Holds()

    def fail() -> None:
        with holds.login([ONE, TWO]):
            assert holds.logins == {ONE, TWO}
            raise ValueError("oops")

    with holds.login([ONE]):
        with pytest.raises(ValueError, match="oops"):
            fail()
        assert holds.logins == {ONE}
    assert holds.logins == set()


async def test_each_waits_for_the_other() -> None:
    """A renewal waits for logins, a login for renewals, and for no other lease's."""
    holds = Holds()
    with holds.login([ONE]):
        await holds.no_login(TWO)
        await holds.no_renewal([ONE])
        waiting = asyncio.ensure_future(holds.no_login(ONE))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
    await waiting
    with holds.renewal(ONE):
        assert holds.renewals == {ONE}
        await holds.no_renewal([TWO])
        waiting = asyncio.ensure_future(holds.no_renewal([TWO, ONE]))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
    await waiting
