"""Creator roles: who makes the users of a plain CREATEROLE login on PostgreSQL 16 and later.

There whoever makes a role becomes a member of it, and each change of a role walks through all memberships of the one who changes
it. So the login makes no user itself. It makes a root once, and the root makes, as they are needed, creators of some sixty
users each, which a connection acts as by SET ROLE:

    login --SET--> root --SET--> grants      has ADMIN on the groups, and no users: it hands the groups on
                     |---SET---> creator 1   ADMIN on its users and on the groups that they join
                     '---SET---> creator 2 ...

The catalog holds all of it, so nothing has to be remembered elsewhere, and a crash leaves at worst a creator without users. A
root counts as ours where its comment names this broker and PostgreSQL itself noted that our login made it: nobody can plant one. Who made
a user is read from the catalog as well, so a login that takes over needs one grant, `GRANT root TO new_login`, to change the
users of the former one; new users it makes with a root of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import asyncpg

from broker.clock import stopwatch_s
from broker.model import Terms
from broker.secret import random_text
from broker_postgresql.failures import leaves_connection_usable
from broker_postgresql.queries import QUERIES
from broker_postgresql.quoting import identifier, literal
from broker_postgresql.session import Session
from broker_postgresql.settings import NAME_BYTES
from broker_postgresql.terms import options_of

LIVE_AT_MOST = 64
"""Users of one creator: each change of a role walks through as many memberships, and each change of creator through all; measured."""
_REUSED_BELOW = LIVE_AT_MOST // 2
_REMEMBERED = 20_000
_TEXTS_REMEMBERED = 1_000
_PAUSE_S = 60.0
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_][\w$]*)')
_Key: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
_HAND_ON = "WITH ADMIN OPTION, INHERIT FALSE, SET FALSE"


@dataclass(slots=True)
class Creator:
    """One creator, or the role that hands the groups on."""

    name: str
    root: str
    makes: bool
    live: int
    groups: set[str]
    """On which it has ADMIN."""


@dataclass(slots=True)
class _Wanted:
    """The groups that users of some terms may join: such as our login can hand out, and such as it can't."""

    given: frozenset[str] = frozenset()
    lacking: tuple[str, ...] = ()


@dataclass(slots=True)
class _Known:
    """What the catalog said of our own creators."""

    root: str = ""
    grants: Creator | None = None
    creators: list[Creator] = field(default_factory=list)


class Creators:
    """The creators of one broker at one cluster. Everything here does nothing for logins that need none."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._known: _Known | None = None
        self._current: dict[_Key, Creator] = {}
        """Users of one role are made by the same creators, ahead and on demand apart: they are likely to be changed together."""
        self._wanted: dict[_Key, _Wanted] = {}
        self._makers: dict[int, str] = {}
        self._paused_until_s = 0.0
        self._lock = asyncio.Lock()

    async def act(self, session: Session, occasion: str, terms: Sequence[Terms]) -> str:
        """Has `session` act as a creator that is to make users of these terms, one each; answers its name.

        Empty, where our login has to make them itself. Users of different occasions get different creators.
        """
        creator = await self._creator(session, _key(occasion, terms[0]), terms) if session.greeting.spreads else None
        try:
            await session.act_as("" if creator is None else creator.name)
        except asyncpg.PostgresError as error:
            # Dropped by hand, or no longer granted.
            self.forget()
            if not leaves_connection_usable(error):
                raise
            await session.act_as("")
            return ""
        return "" if creator is None else creator.name

    async def makers(self, session: Session, oids: Sequence[int]) -> dict[int, str]:
        """Which role has to act to change each of the roles; left out where our login itself does."""
        if not session.greeting.spreads:
            return {}
        unknown = [oid for oid in oids if oid not in self._makers]
        if unknown:
            for oid, name in (await makers(session, unknown)).items():
                self.made(name, [oid])
        return {oid: self._makers[oid] for oid in oids if self._makers.get(oid)}

    def made(self, maker: str, oids: Sequence[int]) -> None:
        """Remembers who made users; the oldest such memories make room."""
        for oid in oids:
            self._makers.pop(oid, None)
            self._makers[oid] = maker
        while len(self._makers) > _REMEMBERED:
            del self._makers[next(iter(self._makers))]

    def forget(self, oids: Sequence[int] = ()) -> None:
        """Has the catalog asked again: for the makers of these users; and for the creators, where a change failed."""
        for oid in oids:
            self._makers.pop(oid, None)
        self._known = None
        self._current.clear()

    async def lacking(self, session: Session, terms: Terms) -> tuple[str, ...]:
        """The grants that are missing for groups that such terms may name; none is remembered, so that what is granted counts."""
        if not session.greeting.spreads:
            return ()
        self._wanted.pop(_key("", terms), None)
        login = identifier(session.greeting.login)
        wanted = await self._groups(session, terms)
        self._wanted.pop(_key("", terms), None)
        return tuple(f"GRANT {identifier(name)} TO {login} {_HAND_ON}" for name in wanted.lacking)

    async def _creator(self, session: Session, key: _Key, terms: Sequence[Terms]) -> Creator | None:
        """The creator for the next users of these terms, able to hand out their groups; None where there can be none.

        Users are made all the same then, by our login itself: only slower, the more there are.
        """
        async with self._lock:
            current = self._current.get(key)
            if current is None or current.live + len(terms) > LIVE_AT_MOST:
                current = await self._next_if_able(session, key)
            if current is None or not await self._equipped(session, current, terms):
                return None
            current.live += len(terms)
            return current

    async def _next_if_able(self, session: Session, key: _Key) -> Creator | None:
        if stopwatch_s() < self._paused_until_s:
            return None
        try:
            return await self._next(session, key)
        except asyncpg.PostgresError as error:
            if not leaves_connection_usable(error):
                raise
            self.forget()
            self._paused_until_s = stopwatch_s() + _PAUSE_S
            return None

    async def _equipped(self, session: Session, creator: Creator, terms: Sequence[Terms]) -> bool:
        try:
            for each in terms:
                await self._equip(session, creator, each)
        except asyncpg.PostgresError as error:
            if not leaves_connection_usable(error):
                raise
            self.forget()
            self._wanted.clear()
            return False
        return True

    async def _next(self, session: Session, key: _Key) -> Creator:
        """The emptiest creator that is nobody's current one, by the catalog's count; a new one where none has much room."""
        self._current.pop(key, None)
        if len(self._current) >= _TEXTS_REMEMBERED:
            self._current.clear()
        known = self._known = await self._read(session)
        taken = {creator.name for creator in self._current.values()}
        free = [creator for creator in known.creators if creator.name not in taken]
        roomy = min(free, key=lambda creator: creator.live, default=None)
        if roomy is None or roomy.live >= _REUSED_BELOW:
            if not known.root:
                known.root = await self._make_root(session)
            roomy = await self._make(session, known, "CREATEROLE")
        self._current[key] = roomy
        return roomy

    async def _read(self, session: Session) -> _Known:
        rows = await session.rows(QUERIES["creators"], _comment(self._broker))
        known = _Known()
        for row in rows:
            known.root = known.root or row["root"]
            if row["name"] is None:
                continue
            each = Creator(row["name"], row["root"], row["creates"], row["live"], set(row["groups"]))
            if each.makes:
                known.creators.append(each)
            elif each.root == known.root:
                known.grants = known.grants or each
        return known

    async def _make_root(self, session: Session) -> str:
        root = f"broker_{self._broker}_{random_text(6, _LETTERS)}"
        name, login = identifier(root), identifier(session.greeting.login)
        await session.run_as([
            ("", f"CREATE ROLE {name} CREATEROLE NOLOGIN; COMMENT ON ROLE {name} IS {literal(_comment(self._broker))}"),
            ("", f"GRANT {name} TO {login} WITH SET TRUE, INHERIT FALSE"),
        ])  # fmt: skip
        return root

    async def _make(self, session: Session, known: _Known, attribute: str) -> Creator:
        """A role made by the root. The self-grant comes with the creation: by GRANT it would cost a walk through all users."""
        creator = Creator(f"{known.root}_{random_text(6, _LETTERS)}", known.root, attribute == "CREATEROLE", 0, set())
        made = f"CREATE ROLE {identifier(creator.name)} {attribute} NOLOGIN"
        await session.run_as([(known.root, f"SELECT set_config('createrole_self_grant', 'set', true); {made}")])
        return creator

    async def _equip(self, session: Session, creator: Creator, terms: Terms) -> None:
        """Gives the creator ADMIN on the groups that its users may join, where it has not."""
        wanted = (await self._groups(session, terms)).given
        missing = sorted(wanted - creator.groups)
        if not missing:
            return
        known = self._known or await self._read(session)
        if known.grants is None:
            known.grants = await self._make(session, known, "NOCREATEROLE")
        grants = known.grants
        first = [("", _hand_on(group, grants)) for group in missing if group not in grants.groups]
        await session.run_as([*first, *((grants.name, _hand_on(group, creator)) for group in missing)])
        grants.groups.update(missing)
        creator.groups.update(missing)

    async def _groups(self, session: Session, terms: Terms) -> _Wanted:
        """Every role that the terms name, as an option or anywhere in their statements; which of them we may hand out."""
        key = _key("", terms)
        if key not in self._wanted:
            if len(self._wanted) >= _TEXTS_REMEMBERED:
                self._wanted.clear()
            rows = await session.rows(QUERIES["grantable"], sorted(_words(terms)))
            self._wanted[key] = _Wanted(
                frozenset(row["name"] for row in rows if row["admin"]), tuple(row["name"] for row in rows if not row["admin"])
            )
        return self._wanted[key]


async def makers(session: Session, oids: Sequence[int]) -> dict[int, str]:
    """By OID, which role has to act to change a user: empty for our login itself, and where nobody made it."""
    found = dict.fromkeys(oids, "")
    found.update((row["oid"], row["name"]) for row in await session.rows(QUERIES["makers"], oids))
    return found


async def remedy(session: Session, name: str, maker: str) -> tuple[str, ...]:
    """What would let our login change a user that another login's creator made, or somebody made a superuser.

    To be run by that login, or by a superuser.
    """
    if await session.rows(QUERIES["made_superuser"], name):
        return (f"ALTER ROLE {identifier(name)} NOSUPERUSER",)
    login = identifier(session.greeting.login)
    root = [row["root"] for row in await session.rows(QUERIES["root_of"], maker)]
    if root:
        return (f"GRANT {identifier(root[0])} TO {login} WITH SET TRUE, INHERIT FALSE",)
    return (f"GRANT {identifier(name)} TO {login} WITH ADMIN OPTION",)


def _hand_on(group: str, creator: Creator) -> str:
    return f"GRANT {identifier(group)} TO {identifier(creator.name)} {_HAND_ON}"


def _comment(broker: str) -> str:
    return f"broker-creators:v1:{broker}"


def _key(occasion: str, terms: Terms) -> _Key:
    return occasion, terms.creation, tuple(options_of(terms).grant_roles)


def _words(terms: Terms) -> set[str]:
    """What may be a role's name: the groups of the options, and each quoted or plain word of the statements."""
    words = set(options_of(terms).grant_roles)
    for text in terms.creation:
        for match in _WORD.finditer(text):
            words.add(match[1].replace('""', '"') if match[1] else match[2].lower())
    return {word for word in words if len(word.encode()) <= NAME_BYTES}
