"""Conformance: what every store does with leases. Only the protocol is used."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from broker.model import NO_TOKEN, ConnectionNumber, LeaseNumber, LeaseState, Stage, TokenNumber
from broker.secret import Secret
from broker.store.words import Limits, Move, Refusal, TokenEnd

HOUR_MS = 3_600_000
PATH = "database/creds/app"
LATER = LeaseNumber(0)


# reserve ------------------------------------------------------------------------------------------------------------


async def test_reserved_lease_reads_back_as_it_was_written(book: Any) -> None:
    """An intent holds its facts, connection, token and due time, and is `reserved`."""
    token = await book.token()
    asked = book.reservation(token, ask_key=b"k" * 16)
    assert list(await book.store.reserve([asked])) == [None]
    lease = await book.lease(asked.number)
    assert (lease.state, lease.stage, lease.epoch, lease.attempts) == (LeaseState.RESERVED, Stage.NONE, 0, 0)
    assert (lease.connection, lease.token) == (asked.connection, token)
    assert lease.due_ms == book.store.now_ms() + 60_000
    assert lease.facts == asked.facts


async def test_facts_with_every_field_set_read_back_the_same(book: Any) -> None:
    """Nothing of a lease's facts is lost or changed on the way."""
    token = await book.token()
    facts = book.facts(
        password=Secret("pä\x00ss\N{PILE OF POO}"),
        renewed_ms=5,
        capped_by="token",
        revoke_started_ms=6,
        disabled_ms=7,
        dropped_ms=8,
        reason="recovered",
        failure="it said no",
        failing_since_ms=9,
        remedy=("ALTER TABLE a OWNER TO b", "DROP TABLE c"),
    )
    number = await book.reserved(token, facts=facts)
    assert (await book.lease(number)).facts == facts


async def test_reserving_for_a_token_that_never_was_or_has_ended_is_refused(book: Any) -> None:
    """Token validity is checked by the reserving statement itself."""
    ended = await book.token()
    await book.store.end_tokens([ended], children=TokenEnd.WITH_CHILDREN)
    expired = await book.token(ttl_s=10)
    await book.shift(10)
    asked = [book.reservation(token) for token in (TokenNumber(12345), ended, expired)]
    assert list(await book.store.reserve(asked)) == [Refusal.TOKEN_ENDED] * 3
    assert await book.store.lease(asked[0].number) is None


async def test_a_refused_reservation_does_not_disturb_its_batch(book: Any) -> None:
    """Each of a batch is answered in its place."""
    token = await book.token()
    asked = [book.reservation(token), book.reservation(TokenNumber(99)), book.reservation(token)]
    assert list(await book.store.reserve(asked)) == [None, Refusal.TOKEN_ENDED, None]


async def test_role_limit_counts_within_one_batch(book: Any) -> None:
    """The third of three in one batch sees the two before it."""
    token = await book.token()
    asked = [book.reservation(token, limits=Limits(per_role=2)) for _ in range(3)]
    assert list(await book.store.reserve(asked)) == [None, None, Refusal.ROLE_LIMIT]


async def test_role_limit_holds_under_concurrent_callers(book: Any) -> None:
    """Callers that ask at the same moment get no more than the limit together."""
    token = await book.token()
    answers = await asyncio.gather(
        *(book.store.reserve([book.reservation(token, limits=Limits(per_role=7))]) for _ in range(30))
    )
    assert [answer[0] for answer in answers].count(None) == 7


async def test_token_limit_counts_over_all_roles(book: Any) -> None:
    """A token's limit is about all its leases, whichever path they have."""
    token, other = await book.token(), await book.token()
    limits = Limits(per_token=1)
    await book.reserved(token, "database/creds/one", limits=limits)
    asked = [book.reservation(token, "database/creds/two", limits=limits), book.reservation(other, limits=limits)]
    assert list(await book.store.reserve(asked)) == [Refusal.TOKEN_LIMIT, None]


@pytest.mark.parametrize("state", [LeaseState.RESERVED, LeaseState.ACTIVE, LeaseState.REVOKING, LeaseState.STUCK])
async def test_leases_on_their_way_out_still_count(book: Any, state: LeaseState) -> None:
    """A lease counts from its intent until it is gone, and then no longer."""
    token, limits = await book.token(), Limits(per_role=1, per_token=1)
    number = await book.reserved(token)
    if state is not LeaseState.RESERVED:
        await book.moved(number, LeaseState.RESERVED, state)
    assert list(await book.store.reserve([book.reservation(token, limits=limits)])) == [Refusal.ROLE_LIMIT]
    await book.moved(number, state, LeaseState.GONE)
    assert list(await book.store.reserve([book.reservation(token, limits=limits)])) == [None]


async def test_prepared_users_count_for_no_limit(book: Any) -> None:
    """Nobody holds a pool user, so nobody's limit is used up by it."""
    token = await book.token()
    for _ in range(3):
        await book.pooled()
    await book.reserved(token, limits=Limits(per_role=1, per_token=1))


async def test_revoked_pool_users_count_for_no_limit(book: Any) -> None:
    """A pool user that is removed never belonged to a token."""
    token = await book.token()
    number = await book.pooled()
    await book.moved(number, LeaseState.PREPARED, LeaseState.REVOKING)
    await book.reserved(token, limits=Limits(per_role=1))
    await book.moved(number, LeaseState.REVOKING, LeaseState.GONE)
    assert list(await book.store.reserve([book.reservation(token, limits=Limits(per_role=1))])) == [Refusal.ROLE_LIMIT]


# ask keys -----------------------------------------------------------------------------------------------------------


async def test_the_same_question_is_refused_and_its_lease_found(book: Any) -> None:
    """One ask key stands for one live lease, within a batch too."""
    token, key = await book.token(), b"q" * 16
    asked = [book.reservation(token, ask_key=key), book.reservation(token, ask_key=key)]
    assert list(await book.store.reserve(asked)) == [None, Refusal.ASKED_BEFORE]
    assert (await book.store.asked(key)).number == asked[0].number
    assert await book.store.asked(b"r" * 16) is None


@pytest.mark.parametrize("to", [LeaseState.REVOKING, LeaseState.STUCK, LeaseState.GONE])
async def test_a_lease_that_ends_frees_its_ask_key(book: Any, to: LeaseState) -> None:
    """Once a lease is no longer reserved or active, the same question gives a new one."""
    token, key = await book.token(), b"q" * 16
    first = await book.active(token, ask_key=key)
    await book.moved(first, LeaseState.ACTIVE, to)
    assert await book.store.asked(key) is None
    second = await book.reserved(token, ask_key=key)
    assert (await book.store.asked(key)).number == second


async def test_freeing_an_ask_key_leaves_its_lease_alive(book: Any) -> None:
    """The lease lives on, the question may be asked anew, and the password that nobody can ask for again is erased."""
    token, key = await book.token(), b"q" * 16
    first = await book.active(token, ask_key=key, facts=book.facts(password=Secret("planted-password")))
    assert (await book.store.lease(first)).facts.password is not None
    await book.store.free_ask(key)
    await book.store.free_ask(key)
    lease = await book.store.lease(first)
    assert (lease.state, lease.facts.password) == (LeaseState.ACTIVE, None)
    await book.reserved(token, ask_key=key)


# prepare and hand out -----------------------------------------------------------------------------------------------


async def test_prepared_user_is_handed_out_once(book: Any) -> None:
    """The first handout makes it active; a second one is told to take another."""
    token = await book.token()
    number = await book.pooled()
    handout = book.handout(number, token)
    assert list(await book.store.hand_out([handout, handout])) == [None, Refusal.NOT_PREPARED]
    lease = await book.lease(number)
    assert (lease.state, lease.token, lease.due_ms) == (LeaseState.ACTIVE, token, book.store.now_ms() + HOUR_MS)
    assert lease.facts == handout.facts
    assert list(await book.store.hand_out([handout])) == [Refusal.NOT_PREPARED]


async def test_handing_out_what_is_not_there_is_refused(book: Any) -> None:
    """A pool user that was removed, is not ready, or never was, is not prepared."""
    token = await book.token()
    removed = await book.pooled()
    await book.moved(removed, LeaseState.PREPARED, LeaseState.REVOKING)
    preparing = book.reservation(NO_TOKEN)
    await book.store.prepare([preparing])
    asked = [book.handout(LeaseNumber(number), token) for number in (removed, preparing.number, 4711)]
    assert list(await book.store.hand_out(asked)) == [Refusal.NOT_PREPARED] * 3


async def test_handing_out_checks_token_limits_and_ask_key(book: Any) -> None:
    """A handout passes the same checks as a reservation and leaves the user prepared when it is refused."""
    token, number = await book.token(), await book.pooled()
    await book.active(token, ask_key=b"q" * 16)
    for changes, refusal in (
        ({"token": TokenNumber(99)}, Refusal.TOKEN_ENDED),
        ({"limits": Limits(per_role=1)}, Refusal.ROLE_LIMIT),
        ({"limits": Limits(per_token=1)}, Refusal.TOKEN_LIMIT),
        ({"ask_key": b"q" * 16}, Refusal.ASKED_BEFORE),
    ):
        handout = replace(book.handout(number, token), **changes)
        assert list(await book.store.hand_out([handout])) == [refusal]
    assert await book.state(number) is LeaseState.PREPARED


@pytest.mark.parametrize("ended", ["asker", "owner", "neither"])
async def test_a_lease_for_another_token_needs_both(book: Any, ended: str) -> None:
    """Neither a caller that has ended gets a lease, nor one whose lease would belong to a token that has; the owner's limit counts."""
    owner = await book.token()
    asker = await book.token(parent=owner if ended != "owner" else NO_TOKEN)
    prepared = await book.pooled()
    if ended != "neither":
        await book.store.end_tokens([{"asker": asker, "owner": owner}[ended]], children=TokenEnd.WITH_CHILDREN)
    refusal = None if ended == "neither" else Refusal.TOKEN_ENDED
    reservation = book.reservation(owner, asker=asker, limits=Limits(per_token=2))
    handout = book.handout(prepared, owner, asker=asker, limits=Limits(per_token=2))
    assert list(await book.store.reserve([reservation])) == [refusal]
    assert list(await book.store.hand_out([handout])) == [refusal]
    if refusal is None:
        third = book.reservation(owner, asker=asker, limits=Limits(per_token=2))
        assert list(await book.store.reserve([third])) == [Refusal.TOKEN_LIMIT]
        await book.store.end_tokens([asker], children=TokenEnd.WITH_CHILDREN)
        assert await book.state(prepared) is LeaseState.ACTIVE
        await book.store.end_tokens([owner], children=TokenEnd.WITH_CHILDREN)
        assert await book.state(prepared) is LeaseState.REVOKING


async def test_handed_out_password_is_kept_only_when_asked_for(book: Any) -> None:
    """The sealed copy goes with the handout unless the new facts carry it."""
    token, plain, asked = await book.token(), await book.pooled(), await book.pooled()
    kept = book.facts(password=Secret("planted-password"))
    await book.store.hand_out([book.handout(plain, token), book.handout(asked, token, facts=kept)])
    assert (await book.lease(plain)).facts.password is None
    assert (await book.lease(asked)).facts.password == Secret("planted-password")


async def test_handed_out_lease_ends_with_its_token(book: Any) -> None:
    """A lease is never due later than the end of its token."""
    token, number = await book.token(ttl_s=60), await book.pooled()
    assert list(await book.store.hand_out([book.handout(number, token)])) == [None]
    assert (await book.lease(number)).due_ms == book.store.now_ms() + 60_000


async def test_prepared_users_are_listed_by_path_in_order(book: Any) -> None:
    """A window of prepared users starts after the last number seen, and holds no other path's."""
    numbers = [await book.pooled() for _ in range(4)]
    await book.pooled("database/creds/other")
    await book.store.prepare([book.reservation(NO_TOKEN)])
    window = await book.store.prepared(PATH, 2, after=numbers[0])
    assert [lease.number for lease in window] == numbers[1:3]
    assert window[0].facts.password == Secret("planted-password")


async def test_pool_counts_preparing_and_prepared_users_of_a_path(book: Any) -> None:
    """What is on its way counts towards the pool, what was handed out does not."""
    token = await book.token()
    first, _ = await book.pooled(), await book.pooled()
    await book.store.prepare([book.reservation(NO_TOKEN)])
    await book.pooled("database/creds/other")
    await book.store.hand_out([book.handout(first, token)])
    assert await book.store.pool_size(PATH) == 2
    assert await book.store.pool_size("database/creds/none") == 0


async def test_pools_are_listed_while_they_have_users(book: Any) -> None:
    """A path is a pool while a user of it is preparing or prepared, whatever else it has."""
    number = await book.pooled("database/creds/b")
    await book.store.prepare([book.reservation(NO_TOKEN, "database/creds/a")])
    await book.active(await book.token(), "database/creds/c")
    await book.store.tidy(10)
    assert list(await book.store.list_pools()) == ["database/creds/a", "database/creds/b"]
    await book.moved(number, LeaseState.PREPARED, LeaseState.REVOKING)
    assert list(await book.store.list_pools()) == ["database/creds/a"]


async def test_handed_out_leases_are_unsettled_until_settled(book: Any) -> None:
    """A handout is unsettled until its login is known to be durable, or until it is no longer active."""
    token = await book.token()
    numbers = [await book.pooled() for _ in range(3)]
    await book.store.hand_out([book.handout(number, token) for number in numbers])
    await book.active(token)
    assert [lease.number for lease in await book.store.unsettled(10)] == numbers
    assert len(await book.store.unsettled(2)) == 2
    assert [
        lease.number for lease in await book.store.unsettled(9, connection=ConnectionNumber(1), after=numbers[0])
    ] == numbers[1:]
    assert await book.store.unsettled(9, connection=ConnectionNumber(2)) == []
    await book.store.settle([numbers[0], LeaseNumber(4711)])
    await book.moved(numbers[1], LeaseState.ACTIVE, LeaseState.REVOKING)
    assert [lease.number for lease in await book.store.unsettled(10)] == numbers[2:]


async def test_renewing_an_unsettled_lease_leaves_it_unsettled(book: Any) -> None:
    """A renewal says nothing about the login's durability."""
    token, number = await book.token(), await book.pooled()
    await book.store.hand_out([book.handout(number, token)])
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=HOUR_MS, facts=book.facts())
    assert [lease.number for lease in await book.store.unsettled(10)] == [number]


# move ---------------------------------------------------------------------------------------------------------------


async def test_move_happens_only_from_an_expected_state(book: Any) -> None:
    """A move answers the numbers that matched and leaves the others untouched."""
    token = await book.token()
    reserved, active = await book.reserved(token), await book.active(token)
    moves = [
        Move(number=number, expect={LeaseState.ACTIVE, LeaseState.STUCK}, to=LeaseState.REVOKING, due_in_ms=5)
        for number in (reserved, active, LeaseNumber(4711))
    ]
    assert await book.store.move(moves) == {active}
    assert await book.state(reserved) is LeaseState.RESERVED
    lease = await book.lease(active)
    assert (lease.state, lease.due_ms) == (LeaseState.REVOKING, book.store.now_ms() + 5)


async def test_move_sets_stage_attempts_and_facts(book: Any) -> None:
    """All that a revocation has to remember is written in one step."""
    number = await book.active(await book.token())
    facts = book.facts(reason="expired", failure="no")
    await book.moved(
        number, LeaseState.ACTIVE, LeaseState.REVOKING, stage=Stage.SESSIONS_ENDED, attempts=3, due_in_ms=9, facts=facts
    )
    lease = await book.lease(number)
    assert (lease.stage, lease.attempts, lease.facts) == (Stage.SESSIONS_ENDED, 3, facts)


async def test_move_with_facts_from_another_state_changes_nothing(book: Any) -> None:
    """Facts are written with the state or not at all."""
    number = await book.active(await book.token())
    before = await book.lease(number)
    move = Move(
        number=number, expect=(LeaseState.REVOKING,), to=LeaseState.GONE, due_in_ms=0, facts=book.facts(reason="revoked")
    )
    missing = replace(move, number=LeaseNumber(4711))
    assert await book.store.move([move, missing]) == frozenset()
    assert await book.lease(number) == before


async def test_move_names_the_epoch_of_its_claim(book: Any) -> None:
    """Who lost the claim can no longer move the lease."""
    number = await book.active(await book.token(), due_in_ms=0)
    (mine,) = await book.store.claim_due([LeaseState.ACTIVE], limit=1, hold_ms=0)
    (theirs,) = await book.store.claim_due([LeaseState.ACTIVE], limit=1, hold_ms=0)
    move = Move(number=number, expect=(LeaseState.ACTIVE,), to=LeaseState.REVOKING, due_in_ms=0, epoch=mine.epoch)
    assert await book.store.move([move]) == frozenset()
    assert await book.store.move([replace(move, epoch=theirs.epoch)]) == {number}


async def test_move_that_names_an_ended_token_does_not_happen(book: Any) -> None:
    """A lease is not activated for a token that ended meanwhile."""
    token = await book.token()
    number = await book.reserved(token)
    move = Move(number=number, expect=(LeaseState.RESERVED,), to=LeaseState.ACTIVE, due_in_ms=HOUR_MS, token=token)
    await book.store.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    assert await book.store.move([move]) == frozenset()
    assert await book.state(number) is LeaseState.RESERVED


async def test_lease_activated_after_its_token_ended_is_due_at_once(book: Any) -> None:
    """Even a move that does not name the token lets no lease outlive it."""
    token = await book.token()
    number = await book.reserved(token)
    await book.store.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await book.moved(number, LeaseState.RESERVED, LeaseState.ACTIVE, due_in_ms=HOUR_MS)
    assert (await book.lease(number)).due_ms <= book.store.now_ms()


async def test_renewed_lease_ends_with_its_token(book: Any) -> None:
    """A renewal past the token's end is cut to it."""
    number = await book.active(await book.token(ttl_s=100), due_in_ms=50_000)
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=HOUR_MS)
    assert (await book.lease(number)).due_ms == book.store.now_ms() + 100_000


@pytest.mark.parametrize("to", [LeaseState.REVOKING, LeaseState.STUCK, LeaseState.GONE])
async def test_password_is_erased_when_the_lease_ends(book: Any, to: LeaseState) -> None:
    """Once a lease is ending nobody can ask for its password again, whatever facts the move carries."""
    token = await book.token()
    facts = book.facts(password=Secret("planted-password"))
    plain, with_facts = await book.active(token, facts=facts), await book.active(token, facts=facts)
    await book.moved(plain, LeaseState.ACTIVE, to)
    await book.moved(with_facts, LeaseState.ACTIVE, to, facts=facts)
    for number in (plain, with_facts):
        assert (await book.lease(number)).facts == replace(facts, password=None)


async def test_password_stays_while_the_lease_is_active(book: Any) -> None:
    """A move without facts keeps the password, one with facts says what it is."""
    number = await book.active(await book.token(), facts=book.facts(password=Secret("one")))
    assert (await book.lease(number)).facts.password == Secret("one")
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=5, facts=book.facts(password=Secret("two")))
    assert (await book.lease(number)).facts.password == Secret("two")
    await book.moved(number, LeaseState.ACTIVE, LeaseState.ACTIVE, due_in_ms=5, facts=book.facts())
    assert (await book.lease(number)).facts.password is None


# lists --------------------------------------------------------------------------------------------------------------


async def test_end_under_keeps_to_the_borders_of_path_segments(book: Any) -> None:
    """A prefix takes its own path and what lies under it, not a path that merely starts alike."""
    token = await book.token()
    app, team = await book.active(token, "database/creds/app"), await book.active(token, "database/creds/app/team")
    await book.active(token, "database/creds/application")
    await book.reserved(token, "database/creds/app")
    assert list(await book.store.end_under("database/creds/app")) == [app, team]
    lease = await book.lease(app)
    assert (lease.state, lease.due_ms) == (LeaseState.REVOKING, book.store.now_ms())
    assert list(await book.store.end_under("database/creds/app")) == []


async def test_end_under_nothing_means_all(book: Any) -> None:
    """The empty prefix ends every active lease, and no pool user."""
    token = await book.token()
    numbers = {await book.active(token, path) for path in ("a/creds/x", "b/creds/y")}
    pooled = await book.pooled()
    assert set(await book.store.end_under("")) == numbers
    assert await book.state(pooled) is LeaseState.PREPARED


async def test_end_under_ends_more_than_one_commit_holds(book: Any) -> None:
    """A long list is ended to its last lease, each named once."""
    token = await book.token()
    asked = [book.reservation(token) for _ in range(1_200)]
    await book.store.reserve(asked)
    moves = [Move(number=one.number, expect=(LeaseState.RESERVED,), to=LeaseState.ACTIVE, due_in_ms=HOUR_MS) for one in asked]
    await book.store.move(moves)
    assert list(await book.store.end_under("database")) == [one.number for one in asked]
    assert (await book.store.tally())[LeaseState.ACTIVE] == 0


async def test_paths_are_listed_while_leases_have_them(book: Any) -> None:
    """A path is there from its first lease on until its last is gone; pool users make none."""
    token = await book.token()
    number = await book.active(token, "database/creds/b")
    await book.reserved(token, "database/creds/a")
    await book.pooled("database/creds/pool")
    assert list(await book.store.list_paths()) == ["database/creds/a", "database/creds/b"]
    await book.gone(number)
    assert list(await book.store.list_paths()) == ["database/creds/a"]


async def test_leases_of_a_path_are_listed_in_pages(book: Any) -> None:
    """Live leases of exactly the path, by number."""
    token = await book.token()
    numbers = [await book.active(token) for _ in range(3)]
    await book.active(token, f"{PATH}/more")
    gone = await book.active(token)
    await book.gone(gone)
    await book.pooled()
    assert list(await book.store.list_leases(PATH, after=LATER, limit=2)) == numbers[:2]
    assert list(await book.store.list_leases(PATH, after=numbers[1], limit=2)) == numbers[2:]


async def test_leases_in_states_are_listed_by_number_in_pages(book: Any) -> None:
    """Several states make one list in order, over all connections."""
    token = await book.token()
    numbers = []
    for state in (LeaseState.STUCK, LeaseState.ACTIVE, LeaseState.REVOKING, LeaseState.ACTIVE):
        number = await book.reserved(token, connection=1 + len(numbers) % 2)
        await book.moved(number, LeaseState.RESERVED, state, due_in_ms=1000 - len(numbers))
        numbers.append(number)
    await book.reserved(token)
    states = [LeaseState.STUCK, LeaseState.ACTIVE, LeaseState.REVOKING]
    first = await book.store.leases_in(states, after=LATER, limit=3)
    assert [lease.number for lease in first] == numbers[:3]
    rest = await book.store.leases_in(states, after=first[-1].number, limit=3)
    assert [lease.number for lease in rest] == numbers[3:]
    assert [lease.number for lease in await book.store.leases_in([LeaseState.STUCK], after=LATER, limit=9)] == numbers[:1]


async def test_tally_counts_by_state_and_connection(book: Any) -> None:
    """Counts are of one connection or of all; a state without leases counts nothing."""
    token = await book.token()
    await book.active(token)
    await book.active(token, connection=2)
    await book.pooled(connection=2)
    everything, second = await book.store.tally(), await book.store.tally(2)
    assert (everything[LeaseState.ACTIVE], everything[LeaseState.PREPARED], everything[LeaseState.STUCK]) == (2, 1, 0)
    assert (second[LeaseState.ACTIVE], second[LeaseState.PREPARED]) == (1, 1)
    asked = await book.store.tally(2, states=[LeaseState.ACTIVE, LeaseState.STUCK])
    assert asked.by_state == {LeaseState.ACTIVE: 1}


# ends ---------------------------------------------------------------------------------------------------------------


async def test_tombstone_stays_until_it_is_due(book: Any) -> None:
    """A lease that is gone can be read until its time to be tidied has come."""
    number = await book.active(await book.token())
    await book.gone(number, due_in_ms=1000)
    assert await book.store.tidy(10) == 0
    assert await book.state(number) is LeaseState.GONE
    await book.shift(1)
    assert await book.store.tidy(10) == 1
    assert await book.store.lease(number) is None


async def test_tidy_takes_no_more_than_its_limit_and_nothing_but_tombstones(book: Any) -> None:
    """Tidying is done in bites, and what is still being revoked is not touched."""
    token = await book.token()
    for _ in range(3):
        await book.gone(await book.active(token))
    revoking = await book.active(token)
    await book.moved(revoking, LeaseState.ACTIVE, LeaseState.REVOKING)
    assert [await book.store.tidy(2) for _ in range(3)] == [2, 1, 0]
    assert await book.state(revoking) is LeaseState.REVOKING


async def test_highest_number_outlives_its_row(book: Any) -> None:
    """A number that was tidied or ended is never given again."""
    assert await book.store.highest_number() == 0
    token = await book.token()
    assert await book.store.highest_number() == token
    number = await book.active(token)
    await book.gone(number)
    await book.store.tidy(10)
    assert await book.store.highest_number() == number
    last = await book.token()
    await book.store.end_tokens([last], children=TokenEnd.WITH_CHILDREN)
    assert await book.store.highest_number() == last


async def test_empty_batches_do_nothing(book: Any) -> None:
    """No work is no error."""
    assert list(await book.store.reserve([])) == []
    assert list(await book.store.hand_out([])) == []
    assert await book.store.move([]) == frozenset()
    await book.store.prepare([])
    await book.store.settle([])
    await book.store.barrier()


async def test_prepared_user_is_not_handed_out_under_another_path(book: Any) -> None:
    """The user was made under the terms of its own role."""
    token, number = await book.token(), await book.pooled("database/creds/other")
    assert list(await book.store.hand_out([book.handout(number, token)])) == [Refusal.NOT_PREPARED]


# reconciling --------------------------------------------------------------------------------------------------------


async def test_leases_by_number_are_those_that_there_are(book: Any) -> None:
    """Asked by number come all that exist, tombstones too, in order; what was never written or was tidied is left out."""
    token = await book.token()
    first, gone, tidied = [await book.active(token) for _ in range(3)]
    await book.gone(tidied)
    assert await book.store.tidy(10) == 1
    await book.gone(gone, due_in_ms=HOUR_MS)
    found = await book.store.leases([gone, tidied, first, LeaseNumber(4)])
    assert [(lease.number, lease.state) for lease in found] == [(first, LeaseState.ACTIVE), (gone, LeaseState.GONE)]
    assert found[0].facts == (await book.lease(first)).facts
    assert list(await book.store.leases([])) == []


async def test_leases_of_a_connection_come_page_by_page(book: Any) -> None:
    """All of one connection in one state, each once, also where many fall due in the same moment; no others."""
    token = await book.token()
    wanted = [await book.active(token, due_in_ms=HOUR_MS * (1 + place // 4)) for place in range(9)]
    await book.active(token, connection=ConnectionNumber(2))
    await book.reserved(token)
    found, beyond = [], None
    while page := await book.store.leases_at(ConnectionNumber(1), LeaseState.ACTIVE, beyond=beyond, limit=2):
        assert len(page) <= 2
        found += [lease.number for lease in page]
        beyond = page[-1]
    assert sorted(found) == wanted


async def test_tombstone_comes_back_to_be_revoked(book: Any) -> None:
    """It counts as live until it is gone again, though its token and its path were forgotten meanwhile."""
    token = await book.token()
    number = await book.active(token)
    await book.gone(number, due_in_ms=HOUR_MS)
    await book.store.end_tokens([token], children=TokenEnd.WITH_CHILDREN)
    await book.store.tidy(10)
    lease = await book.lease(number)
    again = Move(
        number=number,
        expect=(LeaseState.GONE,),
        to=LeaseState.REVOKING,
        due_in_ms=0,
        epoch=lease.epoch,
        facts=replace(lease.facts, reason="seen again"),
    )
    assert await book.store.move([replace(again, epoch=lease.epoch + 1)]) == frozenset()
    assert await book.store.move([again]) == {number}
    assert await book.store.move([again]) == frozenset()
    assert list(await book.store.list_paths()) == [PATH]
    assert await book.store.live_size(PATH) == 1
    claimed = await book.store.claim_due((LeaseState.REVOKING,), limit=5, hold_ms=1_000)
    assert [(one.number, one.facts.reason) for one in claimed] == [(number, "seen again")]
    await book.moved(number, LeaseState.REVOKING, LeaseState.GONE, due_in_ms=HOUR_MS)
    assert await book.store.live_size(PATH) == 0
