"""Which roles of the server are the users of leases, and how a batch is told apart again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from broker.engines.protocol import Outcome, Standing, User
from broker.errors import EngineError, UserRemains, WorkContinues
from broker_postgresql.creators import makers
from broker_postgresql.queries import QUERIES
from broker_postgresql.session import Session

_LAST_OID = (1 << 32) - 1
_OIDS_REMEMBERED = 1_024


class Present(Struct, frozen=True):
    """A lease's user that is there: under this OID, by this name."""

    user: User
    oid: int
    name: str
    maker: str = ""
    """The role that has to act to change it, where that was asked for; empty: our login itself."""


class Results:
    """The outcomes of a batch while it is worked on: a user without an error is fine so far."""

    def __init__(self, users: Sequence[User]) -> None:
        self._users = users
        self._errors: dict[int, EngineError] = {}
        self._identities: dict[int, str] = {}

    def fail(self, user: User, error: EngineError) -> None:
        """Notes the first error of a user; later ones are consequences."""
        self._errors.setdefault(user.number, error)

    def also(self, user: User, remedy: Sequence[str]) -> None:
        """Adds statements to what the error of a user tells to run, each once."""
        error = self._errors.get(user.number)
        if isinstance(error, UserRemains):
            error.remedy = tuple(dict.fromkeys((*error.remedy, *remedy)))

    def note(self, user: User, text: str) -> None:
        """Adds to the text of a user's error what became of the user all the same."""
        error = self._errors[user.number]
        if isinstance(error, UserRemains):
            self._errors[user.number] = UserRemains(f"{error}; {text}", remedy=error.remedy)

    def failed(self, user: User) -> bool:
        """Whether an error of the user is noted."""
        return user.number in self._errors

    def remains(self, user: User) -> bool:
        """Whether an error of the user is noted, and not just that its work goes on."""
        return self.failed(user) and not isinstance(self._errors[user.number], WorkContinues)

    def identified(self, present: Sequence[Present]) -> None:
        """Notes the OIDs that the server said."""
        self._identities.update((one.user.number, str(one.oid)) for one in present)

    def disowned(self, user: User) -> None:
        """Notes that the user's OID is somebody else's now."""
        self._identities[user.number] = ""

    def outcomes(self) -> list[Outcome]:
        """One outcome for each user, in the order of the batch."""
        return [
            Outcome(user.number, self._errors.get(user.number), self._identities.get(user.number, user.identity))
            for user in self._users
        ]


def oid_of(user: User) -> int:
    """The OID that the lease knows; 0, which no role has, where it knows none."""
    return _oid(user.identity)


@lru_cache(_OIDS_REMEMBERED)
def _oid(identity: str) -> int:
    # Asked for a dozen times for each user of a batch.
    if not identity.isascii() or not identity.isdecimal():
        return 0
    oid = int(identity)
    return oid if oid <= _LAST_OID else 0


async def ended_oids(session: Session, users: Sequence[User], present: Sequence[Present]) -> list[int]:
    """All OIDs under which the users are, or were and nobody is now, each once.

    After a restore from a backup the server gives OIDs out again: a role that is there under one of them and is not the lease's is
    somebody else's, and so are its sessions.
    """
    there = {one.oid for one in present}
    former = sorted({oid for oid in map(oid_of, users) if oid} - there)
    taken = {row["oid"] for row in await session.rows(QUERIES["names"], former)} if former else set()
    return sorted(there.union(former) - taken)


async def ours(session: Session, users: Sequence[User]) -> list[Present]:
    """The users that are there and are their leases' own; others' roles under the same names are left out."""
    known = [oid for user in users if (oid := oid_of(user))]
    names = {row["oid"]: row["name"] for row in await session.rows(QUERIES["names"], known)} if known else {}
    present, doubtful = [], []
    for user in users:
        oid = oid_of(user)
        if names.get(oid) == user.name:
            present.append(Present(user, oid, user.name))
        else:
            doubtful.append(user)
    if doubtful:
        present += await _recognised(session, doubtful)
    return present


async def standing(session: Session, users: Sequence[User]) -> list[Standing]:
    """See `Engine.look_up`."""
    present = await ours(session, users)
    rows = {row["oid"]: row for row in await session.rows(QUERIES["standing"], [one.oid for one in present])} if present else {}
    return [
        Standing(
            number=one.user.number,
            identity=str(one.oid),
            can_login=rows[one.oid]["can_login"],
            expires_ms=rows[one.oid]["expires_ms"],
        )
        for one in present
        if one.oid in rows
    ]


async def with_makers(session: Session, users: Sequence[Present]) -> list[Present]:
    """The users with their makers, each maker's together."""
    if not session.greeting.spreads:
        return list(users)
    by_oid = await makers(session, [one.oid for one in users])
    return sorted((replace(one, maker=by_oid[one.oid]) for one in users), key=lambda one: one.maker)


def by_maker(users: Sequence[Present]) -> dict[str, list[Present]]:
    """The users of each maker, so that each has to act but once."""
    found: dict[str, list[Present]] = {}
    for one in users:
        found.setdefault(one.maker, []).append(one)
    return found


async def _recognised(session: Session, users: Sequence[User]) -> list[Present]:
    """Those that are not under their OID and name together, told by their markers."""
    rows = await session.rows(
        QUERIES["ours"], [oid_of(user) for user in users], [user.name for user in users], [user.marker for user in users]
    )
    return [Present(users[row["place"] - 1], row["oid"], row["name"]) for row in rows]
