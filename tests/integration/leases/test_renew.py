"""Renew: counted from now, within caps, the database first."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import DatabaseUnavailable, InvalidRequest
from broker.model import LeaseState
from broker.store.words import TokenEnd


@pytest.fixture
async def short(rig: Any, token: Any) -> Any:
    """A lease of 100 s that may live 250 s."""
    await rig.role("short", default_ttl=100, max_ttl=250)
    return await rig.issue(token, role="short")


async def test_a_renewal_counts_from_now(rig: Any, short: Any) -> None:
    """An increment is the time from now on, may shorten, and 0 asks for the default again; lookup and database agree."""
    rig.clock.advance(50_000)
    for increment, ttl in ((0, 100), (150, 150), (20, 20)):
        renewed = await rig.boot.renewer.renew(short.lease_id, increment)
        assert (renewed.ttl_s, renewed.warnings) == (ttl, ())
        view = await rig.boot.query.lookup(short.lease_id)
        assert view.expire_ms == rig.clock.now_ms() + ttl * 1_000
        assert view.last_renewal_ms == rig.clock.now_ms()
        assert rig.server().accounts[short.username].expires_ms == view.expire_ms


async def test_a_renewal_is_capped_by_the_maximum(rig: Any, short: Any) -> None:
    """Past the maximum no renewal goes: the rest is answered, with a warning and no error, and the lease ends there."""
    rig.clock.advance(90_000)
    renewed = await rig.boot.renewer.renew(short.lease_id, 1_000)
    assert renewed.ttl_s == 160
    assert len(renewed.warnings) == 1
    assert (await rig.boot.query.lookup(short.lease_id)).capped_by == "max_ttl"
    rig.clock.advance(159_500)
    renewed = await rig.boot.renewer.renew(short.lease_id, 1_000)
    assert renewed.ttl_s == 0
    assert renewed.warnings
    rig.clock.advance(500)
    await rig.settle_down()
    assert rig.server().accounts == {}


async def test_a_role_that_lowers_its_maximum_lowers_that_of_its_leases(rig: Any, short: Any) -> None:
    """The present role's maximum counts; a lease that is past it already keeps its time and gets no more."""
    await rig.role("short", default_ttl=10, max_ttl=20)
    rig.clock.advance(30_000)
    renewed = await rig.boot.renewer.renew(short.lease_id, 0)
    assert renewed.ttl_s == 70
    assert any("past the max TTL" in warning for warning in renewed.warnings)


async def test_a_role_that_raises_its_maximum_raises_that_of_its_leases(rig: Any, short: Any) -> None:
    """Nor does a lease die at a maximum of before: from the next renewal on the present one counts, and nothing caps it any longer."""
    rig.clock.advance(90_000)
    assert (await rig.boot.renewer.renew(short.lease_id, 1_000)).ttl_s == 160
    await rig.role("short", default_ttl=100, max_ttl=5_000)
    renewed = await rig.boot.renewer.renew(short.lease_id, 1_000)
    assert (renewed.ttl_s, renewed.warnings) == (1_000, ())
    assert (await rig.boot.query.lookup(short.lease_id)).capped_by == ""


async def test_a_renewal_is_capped_by_the_token(rig: Any) -> None:
    """A lease never outlives its token, and the renewal says what capped it."""
    token = await rig.token(ttl_s=200)
    issued = await rig.issue(token)
    rig.clock.advance(100_000)
    renewed = await rig.boot.renewer.renew(issued.lease_id, 500)
    assert renewed.ttl_s == 100
    assert "token" in renewed.warnings[0]
    assert (await rig.boot.query.lookup(issued.lease_id)).capped_by == "token"


async def test_a_renewal_is_shortened_by_chance(rig: Any, token: Any) -> None:
    """A renewal tells the shortened time; lookup and database agree; it takes nothing of what the lease has, unless asked for less."""
    await rig.role("spread", default_ttl=100, max_ttl=1_000, ttl_jitter=20)
    rig.boot.parts.chance = lambda: 0.0
    issued = await rig.issue(token, role="spread")
    assert (issued.ttl_s, issued.capped_by) == (100, "")
    rig.clock.advance(10_000)
    for chance, increment, ttl, capped_by in (
        (0.5, 0, 90, "ttl_jitter"),
        (0.5, 200, 180, "ttl_jitter"),
        (0.999, 200, 180, "ttl_jitter"),
        (0.0, 200, 200, ""),
        (0.5, 50, 45, "ttl_jitter"),
        (0.5, 5_000, 891, "max_ttl"),
    ):
        rig.boot.parts.chance = lambda chance=chance: chance
        renewed = await rig.boot.renewer.renew(issued.lease_id, increment)
        view = await rig.boot.query.lookup(issued.lease_id)
        assert (renewed.ttl_s, view.ttl_s, view.capped_by) == (ttl, ttl, capped_by)
        assert view.expire_ms == rig.clock.now_ms() + ttl * 1_000 == rig.server().accounts[issued.username].expires_ms
        assert bool(renewed.warnings) is (capped_by == "max_ttl")


async def test_a_database_that_does_not_extend_keeps_the_old_end(rig: Any, short: Any) -> None:
    """When the database fails, so does the renewal, and the lease keeps its time."""
    before = (await rig.lease(short.lease_id)).due_ms
    rig.fail("before main.extend", DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await rig.boot.renewer.renew(short.lease_id, 0)
    assert (await rig.lease(short.lease_id)).due_ms == before


async def test_a_user_that_somebody_dropped_is_not_renewed(rig: Any, short: Any) -> None:
    """A lease whose user is no longer there is refused, not prolonged on paper."""
    del rig.server().accounts[short.username]
    with pytest.raises(Exception, match="does not exist"):
        await rig.boot.renewer.renew(short.lease_id, 0)


async def test_promise_10_an_expired_lease_is_not_resurrected(rig: Any, short: Any) -> None:
    """Past its time a lease can't be renewed: before the expiry comes round, while it has the lease in hand, and after."""
    rig.clock.advance(100_000)
    with pytest.raises(InvalidRequest, match="lease expired"):
        await rig.boot.renewer.renew(short.lease_id, 0)
    errors = []

    async def renew() -> None:
        with pytest.raises(InvalidRequest) as error:
            await rig.boot.renewer.renew(short.lease_id, 0)
        errors.append(str(error.value))

    rig.do("after store.claim_due", renew)
    await rig.expire()
    assert set(errors) <= {"lease expired", "lease not found"}
    assert errors
    assert rig.server().accounts == {}
    with pytest.raises(InvalidRequest, match="lease not found"):
        await rig.boot.renewer.renew(short.lease_id, 0)


async def test_a_renewal_loses_against_a_revocation(rig: Any, short: Any) -> None:
    """A lease that is revoked while the database extends it stays revoked."""
    rig.do("after main.extend", lambda: rig.boot.revoker.start(short.lease_id))
    with pytest.raises(InvalidRequest, match="lease expired"):
        await rig.boot.renewer.renew(short.lease_id, 0)
    await rig.settle_down()
    assert rig.server().accounts == {}


async def test_promise_10_a_renewal_loses_against_an_expiry(rig: Any, short: Any) -> None:
    """A lease that falls due while the database extends it, and is taken in hand to be ended, is not renewed."""

    async def fall_due() -> None:
        rig.clock.advance(100_000)
        assert len(await rig.boot.sqlite.claim_due([LeaseState.ACTIVE], limit=10, hold_ms=1_000)) == 1

    rig.do("after main.extend", fall_due)
    with pytest.raises(InvalidRequest, match="lease expired"):
        await rig.boot.renewer.renew(short.lease_id, 0)


@pytest.mark.parametrize("gone", ["role", "token"])
async def test_a_lease_without_role_or_token_is_not_renewed(rig: Any, short: Any, token: Any, gone: str) -> None:
    """Vault's words for a role that was deleted; a lease whose token ended has expired."""
    if gone == "role":
        await rig.boot.catalog.delete_role("short")
    else:
        await rig.boot.sqlite.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    told = 'could not find role with name "short"' if gone == "role" else "lease expired"
    with pytest.raises(InvalidRequest, match=told):
        await rig.boot.renewer.renew(short.lease_id, 0)


@pytest.mark.parametrize("lease_id", ["", "x", "database/creds/short/" + "0" * 24])
async def test_an_id_that_was_never_made_is_not_found(rig: Any, lease_id: str) -> None:
    """Anything but a lease's own id is not found, in Vault's words."""
    with pytest.raises(InvalidRequest, match="lease not found"):
        await rig.boot.renewer.renew(lease_id, 0)
