"""The promises of engines whose server ends logins by itself."""

from __future__ import annotations

import asyncio

from broker.engines.testing.subject import HOUR_MS, Made, Subject, can_log_in, create, done, extension, hold

_MOMENT_MS = 1
_PATIENCE_S = 10


class ExpiryPromises:
    """The server's own end of a login."""

    async def test_server_ends_the_login(self, subject: Subject) -> None:
        """Once its lifetime is over the server refuses the user, with no help of the broker."""
        await refused_in_time(subject, await create(subject, lifetime_ms=_MOMENT_MS))

    async def test_extension_moves_the_end(self, subject: Subject) -> None:
        """An extended user is let in after its first end, and one that is extended to less is refused."""
        longer, shorter = await create(subject, lifetime_ms=_MOMENT_MS), await create(subject)
        await refused_in_time(subject, longer)
        await done(subject, subject.engine.extend, [extension(longer), extension(shorter, _MOMENT_MS)])
        hold(await can_log_in(subject, longer), "an extended user is let in again")
        await refused_in_time(subject, shorter)

    async def test_looking_up_tells_the_end(self, subject: Subject) -> None:
        """The server's own end of a login is told, and follows an extension."""
        made = await create(subject, lifetime_ms=HOUR_MS)
        (before,) = await subject.engine.look_up([made.user])
        await done(subject, subject.engine.extend, [extension(made, 2 * HOUR_MS)])
        (after,) = await subject.engine.look_up([made.user])
        hold(before.expires_ms is not None and after.expires_ms is not None, "a login that ends says when")
        hold(after.expires_ms - before.expires_ms > HOUR_MS / 2, "and later once it was extended")  # type: ignore[operator]  # held above


async def refused_in_time(subject: Subject, made: Made) -> None:
    """The server comes to refuse the user; asked again until then, since its clock is its own."""
    async with asyncio.timeout(_PATIENCE_S):
        while await can_log_in(subject, made):  # noqa: ASYNC110 - the server tells nobody when it starts to refuse
            await asyncio.sleep(_MOMENT_MS / 1_000)
