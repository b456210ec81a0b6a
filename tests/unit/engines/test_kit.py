"""The kit notices an engine that breaks a promise: each flaw here is one that a real plugin could have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from broker.engines.protocol import Engine, Extension, NewUser, Origin, Outcome, Password, Seen, Standing, Swept, User
from broker.engines.testing import EnginePromises, ExpiryPromises, PreparedPromises, Subject
from broker.errors import DatabaseUnavailable, EngineError, UserNameTaken
from broker.model import UserName
from broker.secret import Secret
from broker.testing.engine import MemoryEngine, MemoryServer


class FixedName(MemoryEngine):
    """Always the same name."""

    def user_name(self, display_name: str, role: str) -> UserName:
        """Not random."""
        return UserName("v-app")


class RawName(MemoryEngine):
    """Puts the display name in as it is."""

    def user_name(self, display_name: str, role: str) -> UserName:
        """Not sanitised."""
        return UserName(display_name + super().user_name(display_name, role))


class ShortPassword(MemoryEngine):
    """Too few bits."""

    async def new_password(self) -> Password:
        """Short."""
        return Password(text=Secret((await super().new_password()).text.reveal()[:12]))


class TakesOver(MemoryEngine):
    """Creates over a user of that name."""

    async def create(self, order: NewUser) -> str:
        """Drops what was there."""
        self._server.accounts.pop(order.user.name, None)
        return await super().create(order)


class LeavesHalf(MemoryEngine):
    """Leaves the user of a failed creation."""

    async def create(self, order: NewUser) -> str:
        """The user stays."""
        try:
            return await super().create(order)
        except EngineError:
            self._server.add(order.user.name, order.user.marker)
            raise


class NoIdentity(MemoryEngine):
    """Never says what the server calls the user."""

    async def create(self, order: NewUser) -> str:
        """Nothing."""
        await super().create(order)
        return ""


class AnyPassword(MemoryEngine):
    """Makes users with an empty password instead of theirs."""

    async def create(self, order: NewUser) -> str:
        """The password is lost."""
        return await super().create(replace(order, password=Password(text=Secret(""))))


class PreparesOpen(MemoryEngine):
    """Prepared users can log in."""

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """The operator's LOGIN stands."""
        outcomes = await super().prepare(orders)
        for order in orders:
            if order.user.name in self._server.accounts:
                self._server.accounts[order.user.name].can_login = True
        return outcomes


class PreparesAllOrNone(MemoryEngine):
    """One bad user fails the batch."""

    async def prepare(self, orders: Sequence[NewUser]) -> Sequence[Outcome]:
        """The first error is everybody's."""
        outcomes = await super().prepare(orders)
        error = next((outcome.error for outcome in outcomes if outcome.error), None)
        return [replace(outcome, error=error) for outcome in outcomes]


class EnablesNobody(MemoryEngine):
    """Says that it enabled."""

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """Only the time moves."""
        return await super().extend(extensions)


class EnablesAnybody(MemoryEngine):
    """Does not miss users that are not there."""

    async def enable(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """All fine."""
        await super().enable(extensions)
        return [Outcome(extension.user.number) for extension in extensions]


class ExtensionEnables(MemoryEngine):
    """Extending turns the login on."""

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """LOGIN VALID UNTIL."""
        outcomes = await super().extend(extensions)
        for extension in extensions:
            account = self._own(extension.user)
            if account:
                account.can_login = True
        return outcomes


class ExtensionForgets(MemoryEngine):
    """Extending changes nothing."""

    async def extend(self, extensions: Sequence[Extension]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(extension.user.number) for extension in extensions]


class DisablesNobody(MemoryEngine):
    """Says that it disabled."""

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(user.number) for user in users]


class DisablesByName(MemoryEngine):
    """Does not look whose user it is."""

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Whoever has the name."""
        for user in users:
            if user.name in self._server.accounts:
                self._server.accounts[user.name].can_login = False
        return [Outcome(user.number) for user in users]


class DisablesEverybody(MemoryEngine):
    """Turns off more than was asked."""

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All of the server."""
        for account in self._server.accounts.values():
            account.can_login = False
        return [Outcome(user.number) for user in users]


class EndsNothing(MemoryEngine):
    """Says that sessions are over."""

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(user.number) for user in users]


class EndsEverything(MemoryEngine):
    """Ends everybody's sessions."""

    async def end_sessions(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All of the server."""
        for account in self._server.accounts.values():
            account.sessions.clear()
        return [Outcome(user.number) for user in users]


class DropsOnce(MemoryEngine):
    """A second drop fails."""

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """No IF EXISTS."""
        there = {user.number for user in users if user.name in self._server.accounts}
        outcomes = await super().drop(users)
        return [
            outcome if outcome.number in there else replace(outcome, error=EngineError("no such user")) for outcome in outcomes
        ]


class DropsNobody(MemoryEngine):
    """Says that it dropped, and that nobody is there."""

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(user.number) for user in users]

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(user.number) for user in users]


class DropsByName(MemoryEngine):
    """Drops whoever has the name."""

    async def drop(self, users: Sequence[User]) -> Sequence[Outcome]:
        """No look at the marker."""
        for user in users:
            self._server.accounts.pop(user.name, None)
        return [Outcome(user.number) for user in users]


class NeedsIdentity(MemoryEngine):
    """Knows users by the identity alone, which is lost when the broker dies before it hears it."""

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """Without identity nothing happens."""
        await super().disable([user for user in users if user.identity])
        return [Outcome(user.number) for user in users]


class DestroysOwned(MemoryEngine):
    """Destroys what the user owns."""

    async def release(self, users: Sequence[User]) -> Sequence[Outcome]:
        """DROP OWNED for everybody."""
        for user in users:
            account = self._own(user)
            if account:
                account.owns = False
        return [Outcome(user.number) for user in users]


class ProvesAnything(MemoryEngine):
    """Everybody is absent."""

    async def prove_absent(self, users: Sequence[User]) -> Sequence[Outcome]:
        """All fine."""
        return [Outcome(user.number) for user in users]


class ForgetsOne(MemoryEngine):
    """Gives no answer for the last user of a batch."""

    async def disable(self, users: Sequence[User]) -> Sequence[Outcome]:
        """One is missing."""
        return list(await super().disable(users))[:-1]


class SweepsNothing(MemoryEngine):
    """Lets sessions of dropped users go on."""

    async def sweep(self) -> Sequence[Swept]:
        """Nothing to see."""
        return []


class SweepsEverything(MemoryEngine):
    """Ends everybody's sessions."""

    async def sweep(self) -> Sequence[Swept]:
        """All of the server."""
        for account in self._server.accounts.values():
            account.sessions.clear()
        return await super().sweep()


class SweepsWithoutRemedy(MemoryEngine):
    """Says that it may not, and leaves it at that."""

    async def sweep(self) -> Sequence[Swept]:
        """No remedy."""
        return [replace(each, error=EngineError("denied")) for each in await super().sweep()]


class LooksAndEnds(MemoryEngine):
    """Ends what it was only to look for."""

    async def abandoned(self) -> Sequence[Swept]:
        """Nobody is left afterwards."""
        found = await super().abandoned()
        for sessions in self._server.abandoned.values():
            sessions.clear()
        return found


class OverlooksAbandoned(MemoryEngine):
    """Sweeps well, and finds nothing when it only looks."""

    async def abandoned(self) -> Sequence[Swept]:
        """Nothing to see."""
        return []

    async def sweep(self) -> Sequence[Swept]:
        """As it should."""
        found = await super().abandoned()
        self._server.abandoned.clear()
        return found


class FindsByName(MemoryEngine):
    """Looks users up by their names alone."""

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """No look at the marker."""
        accounts = self._server.accounts
        return [
            Standing(number=user.number, identity=accounts[user.name].identity, can_login=accounts[user.name].can_login)
            for user in users
            if user.name in accounts
        ]


class FindsWithoutEnd(MemoryEngine):
    """Says of nobody when the login ends."""

    async def look_up(self, users: Sequence[User]) -> Sequence[Standing]:
        """No end."""
        return [replace(standing, expires_ms=None) for standing in await super().look_up(users)]


class ListsStrangers(MemoryEngine):
    """Lists whoever is there."""

    async def list_users(self) -> AsyncIterator[Seen]:
        """No look at the marker."""
        for name, account in list(self._server.accounts.items()):
            yield Seen(name=UserName(name), identity=account.identity, marker=account.marker, can_login=account.can_login)


class ListsNobody(MemoryEngine):
    """Finds no users."""

    async def list_users(self) -> AsyncIterator[Seen]:
        """Empty."""
        for seen in list[Seen]():
            yield seen


class ClosesOnce(MemoryEngine):
    """Raises when closed again."""

    closed = False

    async def close(self) -> None:
        """As some drivers do."""
        if self.closed:
            raise DatabaseUnavailable("pool is closed")
        self.closed = True


class SaysTaken(MemoryEngine):
    """Names a taken name by the wrong error."""

    async def create(self, order: NewUser) -> str:
        """The driver's refusal as it came."""
        try:
            return await super().create(order)
        except UserNameTaken:
            raise EngineError("duplicate object") from None


ENGINE, PREPARED, EXPIRY = EnginePromises(), PreparedPromises(), ExpiryPromises()
Promise = Callable[[Subject], Awaitable[None]]


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (FixedName, ENGINE.test_names_are_ascii_and_all_different),
        (RawName, ENGINE.test_names_are_ascii_and_all_different),
        (ShortPassword, ENGINE.test_passwords_are_long_and_all_different),
        (NoIdentity, ENGINE.test_created_user_logs_in),
        (AnyPassword, ENGINE.test_created_user_logs_in),
        (TakesOver, ENGINE.test_taken_name_is_left_untouched),
        (LeavesHalf, ENGINE.test_failed_creation_leaves_nothing),
        (ExtensionEnables, ENGINE.test_extension_leaves_a_login_as_it_is),
        (ExtensionForgets, ENGINE.test_extension_misses_who_is_not_there),
        (DisablesNobody, ENGINE.test_disabled_user_is_kept_out),
        (DisablesEverybody, ENGINE.test_disabled_user_is_kept_out),
        (EndsNothing, ENGINE.test_ended_sessions_are_over),
        (EndsEverything, ENGINE.test_ended_sessions_are_over),
        (DropsOnce, ENGINE.test_removed_user_is_gone),
        (DropsNobody, ENGINE.test_removed_user_is_gone),
        (ForgetsOne, ENGINE.test_removed_user_is_gone),
        (DropsOnce, ENGINE.test_absent_user_counts_as_removed),
        (DisablesByName, ENGINE.test_stranger_is_left_untouched),
        (DropsByName, ENGINE.test_stranger_is_left_untouched),
        (NeedsIdentity, ENGINE.test_user_is_known_by_its_marker_alone),
        (DestroysOwned, ENGINE.test_what_is_owned_is_not_destroyed),
        (ProvesAnything, ENGINE.test_absence_is_not_claimed_of_the_present),
        (SweepsNothing, ENGINE.test_sweep_ends_sessions_of_the_absent),
        (SweepsEverything, ENGINE.test_sweep_ends_sessions_of_the_absent),
        (SweepsWithoutRemedy, ENGINE.test_sweep_ends_sessions_of_the_absent),
        (LooksAndEnds, ENGINE.test_sweep_ends_sessions_of_the_absent),
        (OverlooksAbandoned, ENGINE.test_sweep_ends_sessions_of_the_absent),
        (FindsByName, ENGINE.test_looking_up_finds_ours_alone),
        (FindsWithoutEnd, EXPIRY.test_looking_up_tells_the_end),
        (ListsStrangers, ENGINE.test_listing_shows_ours_alone),
        (ListsNobody, ENGINE.test_listing_shows_ours_alone),
        (PreparesOpen, PREPARED.test_prepared_user_is_kept_out),
        (PreparesAllOrNone, PREPARED.test_preparing_is_isolated),
        (EnablesNobody, PREPARED.test_enabled_user_logs_in),
        (EnablesAnybody, PREPARED.test_enabling_misses_who_is_not_there),
        (ExtensionEnables, PREPARED.test_extension_does_not_enable),
        (PreparesOpen, PREPARED.test_prepared_user_is_listed_without_login),
        (DropsNobody, PREPARED.test_prepared_users_can_be_removed),
        (ExtensionForgets, EXPIRY.test_extension_moves_the_end),
    ],
)
async def test_broken_promise_is_noticed(
    kind: type[MemoryEngine], promise: Promise, make_subject: Callable[[MemoryServer, Engine, Origin], Subject]
) -> None:
    """An engine with this flaw fails the test of that promise, by an assertion that says what was promised."""
    server, origin = MemoryServer(), Origin(broker="b0", boot="boot0")
    with pytest.raises(AssertionError):
        await promise(make_subject(server, kind(server, origin), origin))


async def test_wrong_error_for_a_taken_name_is_noticed(make_subject: Callable[[MemoryServer, Engine, Origin], Subject]) -> None:
    """A driver's error let through instead of `UserNameTaken` fails the promise."""
    server, origin = MemoryServer(), Origin(broker="b0", boot="boot0")
    with pytest.raises(EngineError, match="duplicate object"):
        await ENGINE.test_taken_name_is_left_untouched(make_subject(server, SaysTaken(server, origin), origin))


async def test_second_close_that_raises_is_noticed(make_subject: Callable[[MemoryServer, Engine, Origin], Subject]) -> None:
    """An engine that can't be closed twice fails the promise."""
    server, origin = MemoryServer(), Origin(broker="b0", boot="boot0")
    with pytest.raises(DatabaseUnavailable):
        await ENGINE.test_closing_twice_is_harmless(make_subject(server, ClosesOnce(server, origin), origin))
