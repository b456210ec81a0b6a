"""The promises of every engine."""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace

from broker.engines.protocol import NewUser
from broker.engines.testing.subject import (
    Made,
    Subject,
    can_log_in,
    create,
    done,
    errors,
    extension,
    hold,
    order,
    remove,
    session,
    stranger,
)
from broker.errors import EngineError, InstructionsFailed, UserMissing, UserNameTaken, UserRemains


class EnginePromises:
    """Issue, extension and the stages of revocation."""

    async def test_names_are_ascii_and_all_different(self, subject: Subject) -> None:
        """A name is ASCII whatever the display name holds, and no two are alike."""
        names = [subject.engine.user_name(display, "röle'\"\\;--\x00") for display in ("", "a" * 1_000, "ünï", "'; DROP") * 8]
        hold(all(name.isascii() and name.isprintable() for name in names), "names are printable ASCII")
        hold(
            not any(set("'\"\\;\x00") & set(name) for name in names), "names hold nothing that ends a literal or an identifier"
        )
        hold(len(set(names)) == len(names), "names are never alike")

    async def test_passwords_are_long_and_all_different(self, subject: Subject) -> None:
        """Passwords are ASCII, long enough for 128 bits, and no two are alike."""
        texts = [(await subject.engine.new_password()).text.reveal() for _ in range(8)]
        hold(all(text.isascii() and len(text) >= 22 for text in texts), "passwords hold 128 bits in ASCII")  # noqa: PLR2004 - 22 x 5.95 bits
        hold(len(set(texts)) == len(texts), "passwords are never alike")

    async def test_health_tells_of_the_server(self, subject: Subject) -> None:
        """A server in use says its version, its time, and that it can be written to."""
        health = await subject.engine.health()
        hold(health.version and health.server_time_ms > 0 and health.writable, "health tells version, time and writability")

    async def test_open_can_be_called_again(self, subject: Subject) -> None:
        """Opening an open engine changes nothing for its users."""
        made = await create(subject)
        await subject.engine.open()
        await remove(subject, [made.user])

    async def test_working_terms_are_accepted(self, subject: Subject) -> None:
        """Terms that work are not refused when a role is written."""
        subject.engine.check_terms(subject.terms)

    async def test_created_user_logs_in(self, subject: Subject) -> None:
        """A created user is complete: it logs in with its password and no other, and the server has said what it calls it."""
        made, other = await create(subject), await order(subject)
        hold(made.user.identity, "create answers an identity")
        hold(await can_log_in(subject, made), "a created user logs in")
        hold(await subject.log_in(made.user.name, other.password.text) is None, "another password is refused")

    async def test_taken_name_is_left_untouched(self, subject: Subject) -> None:
        """Where somebody else has a user of that name, creation fails by that error and changes nothing of the user."""
        foreign, wanted = await stranger(subject), await order(subject)
        await refused(subject, replace(wanted, user=replace(wanted.user, name=foreign.user.name)), UserNameTaken)
        hold(await can_log_in(subject, foreign), "the user that had the name still logs in with its own password")
        hold(await subject.log_in(foreign.user.name, wanted.password.text) is None, "and not with ours")

    async def test_failed_creation_leaves_nothing(self, subject: Subject) -> None:
        """Instructions of which a later one fails are undone altogether."""
        wanted = await order(subject, subject.failing_terms)
        await refused(subject, wanted, InstructionsFailed)
        hold(not await subject.exists(wanted.user.name), "nothing of a failed creation is left")

    async def test_repeated_creation_harms_nothing(self, subject: Subject) -> None:
        """Creation asked for twice answers the same identity or that the name is taken; the user goes on to work."""
        wanted = await order(subject)
        identity = await subject.engine.create(wanted)
        with suppress(UserNameTaken):
            hold(await subject.engine.create(wanted) == identity, "a repeated creation makes no second user")
        hold(await subject.log_in(wanted.user.name, wanted.password.text), "the user still logs in")

    async def test_extension_leaves_a_login_as_it_is(self, subject: Subject) -> None:
        """Extending may be repeated, keeps an enabled user enabled and never turns on one that is off."""
        on, off = await create(subject), await create(subject)
        await done(subject, subject.engine.disable, [off.user])
        for _ in range(2):
            await done(subject, subject.engine.extend, [extension(on), extension(off)])
        hold(await can_log_in(subject, on), "an extended user still logs in")
        hold(not await can_log_in(subject, off), "extension does not turn on a login that is off")

    async def test_extension_misses_who_is_not_there(self, subject: Subject) -> None:
        """An absent user and a stranger's are missing to `extend`, and the others of the batch are extended."""
        made, absent, foreign = await create(subject), await order(subject), await stranger(subject)
        users = [absent.user, made.user, foreign.user]
        orders = [replace(extension(made), user=user) for user in users]
        found = await errors(subject, subject.engine.extend, orders)
        hold(isinstance(found[0], UserMissing) and isinstance(found[2], UserMissing), "who is absent or a stranger is missing")
        hold(found[1] is None, "one missing user fails no other")

    async def test_disabled_user_is_kept_out(self, subject: Subject) -> None:
        """After `disable` no login succeeds, and nobody else notices."""
        made, other = await create(subject), await create(subject)
        for _ in range(2):
            await done(subject, subject.engine.disable, [made.user])
            hold(not await can_log_in(subject, made), "a disabled user is refused")
        hold(await can_log_in(subject, other), "others still log in")

    async def test_ended_sessions_are_over(self, subject: Subject) -> None:
        """After `end_sessions` all of the user's sessions are closed, and nobody else's is."""
        made, other = await create(subject), await create(subject)
        ended, kept = [await session(subject, made) for _ in range(2)], await session(subject, other)
        await done(subject, subject.engine.disable, [made.user])
        for _ in range(2):
            await done(subject, subject.engine.end_sessions, [made.user])
        hold(not any([await opened.is_open() for opened in ended]), "every session of the user is over")
        hold(await kept.is_open(), "others' sessions go on")

    async def test_removed_user_is_gone(self, subject: Subject) -> None:
        """The stages of a revocation, each called twice, leave no user and no session; a batch is removed as one is."""
        made = [await create(subject) for _ in range(min(3, subject.engine.traits.users_per_batch))]
        opened = [await session(subject, each) for each in made]
        users = [each.user for each in made]
        engine = subject.engine
        for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
            await done(subject, verb, users)
            await done(subject, verb, users)
        hold(not any([await subject.exists(user.name) for user in users]), "a dropped user is gone")
        hold(not any([await each.is_open() for each in opened]), "and so are its sessions")

    async def test_absent_user_counts_as_removed(self, subject: Subject) -> None:
        """Every stage succeeds for a user that never came to be."""
        await remove(subject, [(await order(subject)).user])

    async def test_stranger_is_left_untouched(self, subject: Subject) -> None:
        """A user of the same name that is not the lease's counts as removed, and keeps login, sessions and life."""
        foreign = await stranger(subject)
        opened = await session(subject, foreign)
        await remove(subject, [foreign.user])
        hold(await opened.is_open(), "a stranger's session goes on")
        hold(await can_log_in(subject, foreign), "a stranger still logs in")

    async def test_user_is_known_by_its_marker_alone(self, subject: Subject) -> None:
        """A user whose identity the broker never heard, since it died meanwhile, is removed all the same."""
        made = await create(subject)
        unheard = replace(made.user, identity="")
        await done(subject, subject.engine.disable, [unheard])
        hold(not await can_log_in(subject, made), "the user is disabled")
        await remove(subject, [unheard])
        hold(not await subject.exists(made.user.name), "the user is gone")

    async def test_what_is_owned_is_not_destroyed(self, subject: Subject) -> None:
        """A user that owns something without a safe heir remains, with the remedy, and the rest of its batch is removed."""
        owner, other = await create(subject, subject.owning_terms), await create(subject)
        users = [owner.user, other.user]
        engine = subject.engine
        await done(subject, engine.disable, users)
        await done(subject, engine.end_sessions, users)
        for verb in (engine.release, engine.drop):
            found = await errors(subject, verb, users)
            hold(isinstance(found[0], UserRemains) and found[0].remedy, "the owner remains, and the remedy is named")
            hold(found[1] is None, "one user that remains fails no other")
        hold(await subject.exists(owner.user.name), "the owner is still there")
        hold(not await can_log_in(subject, owner), "and contained")
        hold(not await subject.exists(other.user.name), "the other one is gone")

    async def test_absence_is_not_claimed_of_the_present(self, subject: Subject) -> None:
        """The proof fails for a user that is there, and holds for the absent one beside it."""
        made, absent = await create(subject), await order(subject)
        users = [made.user, absent.user]
        found = await errors(subject, subject.engine.prove_absent, users)
        hold(isinstance(found[0], UserRemains), "a user that is there is not proved absent")
        hold(found[1] is None, "an absent one is")

    async def test_looking_up_finds_ours_alone(self, subject: Subject) -> None:
        """Of the users asked for those are found that are there and the leases' own, each with its login; nothing changes."""
        on, off, absent, foreign = (
            await create(subject),
            await create(subject),
            await order(subject),
            await stranger(subject),
        )
        await done(subject, subject.engine.disable, [off.user])
        users = [on.user, absent.user, foreign.user, replace(off.user, identity="")]
        found = {standing.number: standing for standing in await subject.engine.look_up(users)}
        hold(
            set(found) == {on.user.number, off.user.number}, "who is absent or a stranger's is left out, who is there is found"
        )
        for made, login in ((on, True), (off, False)):
            standing = found[made.user.number]
            hold(standing.identity == made.user.identity, "under the server's own identity")
            hold(standing.can_login is login, "and it is said whether it can log in")
        hold(await can_log_in(subject, on) and await can_log_in(subject, foreign), "nobody is changed by that")

    async def test_sweep_ends_sessions_of_the_absent(self, subject: Subject) -> None:
        """Sessions of a user that somebody removed by hand are found; then ended, or it is said what is missing; others' go on."""
        made, foreign = await create(subject), await stranger(subject)
        left, kept = await session(subject, made), await session(subject, foreign)
        await subject.remove_by_hand(made.user.name)
        before = {each.identity: each for each in await subject.engine.abandoned()}
        hold(made.user.identity in before and before[made.user.identity].sessions == 1, "who only looks finds the session")
        hold(foreign.user.identity not in before, "and nobody else's")
        hold(await left.is_open(), "and ends none")
        failed = await unswept(subject, made)
        if any(isinstance(error, UserRemains) and not error.remedy for error in failed):
            # It was told to end, and may: a busy server takes its time, and the next sweep sees that it did.
            failed = await unswept(subject, made)
        hold(failed or not await left.is_open(), "a session of a user that is no more is ended, or it is said why not")
        hold(all(isinstance(error, UserRemains) and error.remedy for error in failed), "and how that could be helped")
        hold(await kept.is_open(), "everybody else's sessions go on")

    async def test_listing_shows_ours_alone(self, subject: Subject) -> None:
        """The listing shows each user with its marker, identity and login, and no stranger."""
        on, off, foreign = await create(subject), await create(subject), await stranger(subject)
        await done(subject, subject.engine.disable, [off.user])
        seen = {each.name: each async for each in subject.engine.list_users()}
        for made, login in ((on, True), (off, False)):
            found = seen.get(made.user.name)
            hold(found is not None, "every user with a marker of this broker is listed")
            hold((found.identity, found.marker) == (made.user.identity, made.user.marker), "as what it is")  # type: ignore[union-attr]  # held above
            hold(found.can_login is login, "and whether it can log in")  # type: ignore[union-attr]  # held above
        hold(foreign.user.name not in seen, "a stranger is not listed")

    async def test_rehearsal_leaves_no_trace(self, subject: Subject) -> None:
        """Where a plugin rehearses: working terms lack nothing that is fatal and pass, failing ones are named, and nobody is left."""
        if not subject.engine.traits.rehearses:
            return
        before = {seen.name async for seen in subject.engine.list_users()}
        lacks = await subject.engine.preflight([subject.terms])
        hold(not any(lack.fatal for lack in lacks), "nothing is missing without which no user could be made")
        hold(all(lack.need and (lack.remedy or lack.reason) for lack in lacks), "and what is, is named with what gives it")
        hold((await subject.engine.rehearse(subject.terms)).removable, "users of working terms can be removed")
        hold(not (await subject.engine.rehearse(subject.owning_terms)).removable, "it is told who would remain")
        try:
            await subject.engine.rehearse(subject.failing_terms)
        except InstructionsFailed as error:
            hold(str(error), "the instruction that failed is named")
        else:
            raise AssertionError("a rehearsal of failing instructions raises InstructionsFailed")
        hold({seen.name async for seen in subject.engine.list_users()} == before, "a rehearsal leaves no user")

    async def test_plain_user_gets_in(self, subject: Subject) -> None:
        """Where a plugin rehearses: a user of its plain terms gets in with its password and no other, not when it is disabled, and goes."""
        if not subject.engine.traits.rehearses:
            return
        made = await create(subject, subject.engine.plain_terms())
        await subject.engine.log_in(made.user, made.password)
        for password in ((await order(subject)).password.text, made.password):
            try:
                await subject.engine.log_in(made.user, password)
            except EngineError:
                await done(subject, subject.engine.disable, [made.user])
            else:
                raise AssertionError("a refused login raises EngineError")
        await remove(subject, [made.user])
        hold(not await subject.exists(made.user.name), "the user is gone")

    async def test_closing_twice_is_harmless(self, subject: Subject) -> None:
        """Closing never raises, also when the engine is closed."""
        await subject.engine.close()
        await subject.engine.close()


async def unswept(subject: Subject, made: Made) -> list[EngineError]:
    """What one sweep could not end of this user, and why."""
    swept = [each for each in await subject.engine.sweep() if each.identity == made.user.identity]
    return [each.error for each in swept if each.error is not None]


async def refused(subject: Subject, wanted: NewUser, kind: type[EngineError]) -> None:
    """Creation must fail by just that error."""
    try:
        await subject.engine.create(wanted)
    except kind:
        return
    raise AssertionError(f"creation raises {kind.__name__}")
