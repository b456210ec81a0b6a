"""The promises of engines that prepare users."""

from __future__ import annotations

from msgspec.structs import replace

from broker.engines.testing.subject import (
    Subject,
    can_log_in,
    done,
    errors,
    extension,
    hold,
    order,
    prepare,
    remove,
    session,
    stranger,
)
from broker.errors import InstructionsFailed, UserMissing, UserNameTaken


class PreparedPromises:
    """Users that are made without login, and turned on later."""

    async def test_prepared_user_is_kept_out(self, subject: Subject) -> None:
        """A prepared user exists and can't log in, though the instructions say login; nor after it is prepared again."""
        wanted = await order(subject)
        (outcome,) = await subject.engine.prepare([wanted])
        hold(outcome.error is None and outcome.identity, "preparing answers an identity")
        hold(await subject.exists(wanted.user.name), "a prepared user exists")
        hold(await subject.log_in(wanted.user.name, wanted.password.text) is None, "and can't log in")
        (again,) = await errors(subject, subject.engine.prepare, [wanted])
        hold(again is None or isinstance(again, UserNameTaken), "preparing it again succeeds, or finds the name taken")
        hold(await subject.log_in(wanted.user.name, wanted.password.text) is None, "it still can't log in")

    async def test_preparing_is_isolated(self, subject: Subject) -> None:
        """A taken name and instructions that fail are those users' own errors; the others of the batch are prepared."""
        foreign = await stranger(subject)
        good, bad, taken = await order(subject), await order(subject, subject.failing_terms), await order(subject)
        taken = replace(taken, user=replace(taken.user, name=foreign.user.name))
        orders = [bad, good, taken]
        found = await errors(subject, subject.engine.prepare, orders)
        hold(isinstance(found[0], InstructionsFailed), "instructions that fail are named as such")
        hold(isinstance(found[2], UserNameTaken), "a taken name is named as such")
        hold(found[1] is None and await subject.exists(good.user.name), "the good one is prepared")
        hold(not await subject.exists(bad.user.name), "nothing is left of the failed one")
        hold(await can_log_in(subject, foreign), "the user that had the name is untouched")

    async def test_enabled_user_logs_in(self, subject: Subject) -> None:
        """Enabling lets a prepared user in with its password, also when asked for twice; others stay out."""
        made, other = await prepare(subject), await prepare(subject)
        for _ in range(2):
            await done(subject, subject.engine.enable, [extension(made)])
            hold(await can_log_in(subject, made), "an enabled user logs in")
        hold(not await can_log_in(subject, other), "the others are still kept out")

    async def test_enabling_misses_who_is_not_there(self, subject: Subject) -> None:
        """An absent user and a stranger's are missing to `enable`, and the others of the batch are enabled."""
        made, absent, foreign = await prepare(subject), await order(subject), await stranger(subject)
        users = [absent.user, made.user, foreign.user]
        found = await errors(subject, subject.engine.enable, [replace(extension(made), user=user) for user in users])
        hold(isinstance(found[0], UserMissing) and isinstance(found[2], UserMissing), "who is absent or a stranger is missing")
        hold(found[1] is None and await can_log_in(subject, made), "one missing user fails no other")

    async def test_extension_does_not_enable(self, subject: Subject) -> None:
        """Extending a prepared user moves its time and leaves it without login."""
        made = await prepare(subject)
        await done(subject, subject.engine.extend, [extension(made)])
        hold(not await can_log_in(subject, made), "an extended prepared user is still kept out")

    async def test_prepared_user_is_listed_without_login(self, subject: Subject) -> None:
        """The listing says of a prepared user that it can't log in."""
        made = await prepare(subject)
        seen = [each async for each in subject.engine.list_users() if each.name == made.user.name]
        hold([each.can_login for each in seen] == [False], "a prepared user is listed once, without login")

    async def test_prepared_users_can_be_removed(self, subject: Subject) -> None:
        """A prepared user, and one that was enabled and is in session, are removed alike."""
        idle, used = await prepare(subject), await prepare(subject)
        await done(subject, subject.engine.enable, [extension(used)])
        opened = await session(subject, used)
        await remove(subject, [idle.user, used.user])
        hold(not await subject.exists(idle.user.name) and not await subject.exists(used.user.name), "both are gone")
        hold(not await opened.is_open(), "the session is over")
