"""A plain CREATEROLE login on PostgreSQL 16 and later: its users are spread over creators, and another login can take over."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.engines.protocol import Extension, NewUser, Origin, Outcome, User
from broker.errors import InstructionsFailed, UserRemains
from broker.model import LeaseNumber, Terms
from broker.testing.postgresql import PostgresServer
from broker_postgresql import Engine, creators
from broker_postgresql.acting import run_as_each

OF_USERS = (
    "SELECT u.rolname::text AS user, c.rolname::text AS maker FROM pg_auth_members m JOIN pg_roles u ON u.oid = m.roleid"
    " JOIN pg_roles c ON c.oid = m.member WHERE m.admin_option AND m.grantor = 10 AND u.rolname LIKE 'v-%'"
)
CREATORS = "SELECT rolname::text FROM pg_roles WHERE rolcreaterole AND rolname ~ '^broker_[a-z0-9]+_[a-z0-9]{6}_'"
BY_GROUP = Terms(options={"grant_roles": ["readers"]})
BY_STATEMENTS = Terms(creation=("CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' IN ROLE Readers",))
HOUR_MS = 3_600_000
_numbers = itertools.count(1)
_boots = itertools.count(1)


@dataclass
class Cluster:
    """A server of these tests' own kind, its superuser's session, and engines of one broker there."""

    server: PostgresServer
    root: Any
    stack: AsyncExitStack
    broker: str

    async def engine(self, login: str = "limited", broker: str = "") -> Engine:
        """An open engine; a further one stands for the broker after a restart."""
        config = {
            "connection_url": self.server.url_template(),
            "username": login,
            "password": login,
            "scram_iterations": 1,
        }
        engine = Engine("test", config, Origin(broker=broker or self.broker, boot=f"boot{next(_boots)}"))
        self.stack.push_async_callback(engine.close)
        await engine.open()
        return engine

    async def prepare(self, engine: Engine, count: int, terms: Terms = BY_GROUP) -> list[User]:
        """Users without login, which all must have been made."""
        orders = [await order(engine, terms) for _ in range(count)]
        outcomes = await engine.prepare(orders)
        assert [outcome.error for outcome in outcomes] == [None] * count
        identities = {outcome.number: outcome.identity for outcome in outcomes}
        return [replace(each.user, identity=identities[each.user.number]) for each in orders]

    async def makers(self) -> dict[str, str]:
        """Who made each user, as the catalog has it."""
        return {row["user"]: row["maker"] for row in await self.root.fetch(OF_USERS)}

    async def creators(self) -> set[str]:
        """All creators there are."""
        return {row[0] for row in await self.root.fetch(CREATORS)}

    async def run_as(self, login: str, statements: Sequence[str]) -> None:
        """Runs statements as somebody who logs in."""
        wire: Any = await asyncpg.connect(self.server.url_template().replace("{{username}}:{{password}}", f"{login}:{login}"))
        for statement in statements:
            await wire.execute(statement)
        await wire.close()


async def order(engine: Engine, terms: Terms = BY_GROUP) -> NewUser:
    """An order for a new user."""
    number = next(_numbers)
    name = engine.user_name("test", "role")
    user = User(number=LeaseNumber(number), name=name, identity="", marker=f"broker:v1:x:{number}:mac", terms=terms)
    return NewUser(user=user, password=await engine.new_password(), lifetime_ms=HOUR_MS)


def longer(users: Sequence[User]) -> list[Extension]:
    """An hour more for each."""
    return [Extension(user=user, lifetime_ms=HOUR_MS) for user in users]


def failures(outcomes: Sequence[Outcome]) -> list[Exception]:
    """The errors among the outcomes."""
    return [outcome.error for outcome in outcomes if outcome.error is not None]


async def removed(engine: Engine, users: Sequence[User]) -> list[Exception]:
    """The errors of all stages of a revocation."""
    found: list[Exception] = []
    for verb in (engine.disable, engine.end_sessions, engine.release, engine.drop, engine.prove_absent):
        found += failures(await verb(users))
    return found


@pytest.fixture
async def cluster(postgresql_18: PostgresServer) -> AsyncIterator[Cluster]:
    """PostgreSQL 18 with a group and two logins that have what the manual asks for, `readers` WITH ADMIN OPTION; then bare again."""
    async with AsyncExitStack() as stack:
        root: Any = await asyncpg.connect(postgresql_18.superuser_dsn().reveal())
        stack.push_async_callback(root.close)
        await root.execute(
            "CREATE ROLE readers; CREATE ROLE writers; CREATE TABLE goods (); GRANT SELECT ON goods TO readers;"
            "CREATE ROLE limited LOGIN CREATEROLE PASSWORD 'limited'; CREATE ROLE second LOGIN CREATEROLE PASSWORD 'second';"
            "CREATE ROLE stranger LOGIN CREATEROLE PASSWORD 'stranger';"
            "GRANT readers TO limited, second WITH ADMIN OPTION, INHERIT FALSE, SET FALSE"
        )
        stack.push_async_callback(_clear, root)
        yield Cluster(postgresql_18, root, stack, f"b{next(_numbers)}")


async def _clear(root: Any) -> None:
    await root.execute("DROP TABLE goods")
    pattern = "^(v-|broker_|readers$|writers$|limited$|second$|stranger$)"
    names = [row[0] for row in await root.fetch("SELECT quote_ident(rolname) FROM pg_roles WHERE rolname ~ $1", pattern)]
    for name in names:
        await root.execute(f"DROP OWNED BY {name} CASCADE")
    await root.execute(f"DROP ROLE {', '.join(names)}")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many users a creator has at most in these tests."""
    monkeypatch.setattr(creators, "LIVE_AT_MOST", 4)
    monkeypatch.setattr(creators, "_REUSED_BELOW", 2)
    return 4


async def test_users_are_spread(cluster: Cluster, few: int) -> None:
    """However many users live, no creator has more than its share, and the login itself is a member of a handful of roles."""
    engine = await cluster.engine()
    await cluster.prepare(engine, 12)
    await engine.create(await order(engine, BY_STATEMENTS))
    per_creator: dict[str, int] = {}
    for maker in (await cluster.makers()).values():
        per_creator[maker] = per_creator.get(maker, 0) + 1
    assert sorted(per_creator.values()) == [1, few, few, few]
    assert await cluster.root.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = 'limited'::regrole") <= few


async def test_one_batch_over_many_creators(cluster: Cluster, few: int) -> None:
    """Users of several creators, in any order, are turned on, extended and removed in one call each, also after a restart."""
    users = await cluster.prepare(await cluster.engine(), 11)
    users.sort(key=lambda user: user.name)
    engine = await cluster.engine()
    assert not failures(await engine.enable(longer(users)))
    assert not failures(await engine.extend(longer(users)))
    logins = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%' AND rolcanlogin AND rolvaliduntil > now()"
    assert await cluster.root.fetchval(logins) == len(users)
    assert await removed(engine, users) == []
    assert await cluster.makers() == {}


async def test_creators_are_used_again(cluster: Cluster, few: int) -> None:
    """Creators whose users are gone take new ones; their number follows the live users, not all that ever were."""
    engine = await cluster.engine()
    for _ in range(3):
        assert await removed(engine, await cluster.prepare(engine, 8)) == []
    assert len(await cluster.creators()) == 2


async def test_crash_between_a_creator_and_its_use(cluster: Cluster, few: int) -> None:
    """A creator that nobody used yet, and a root that has none, are found and used by the next process."""
    first = await cluster.engine()
    await cluster.prepare(first, 1)
    await removed(first, await cluster.prepare(first, 1))
    [creator] = await cluster.creators()
    root = creator.rpartition("_")[0]
    users = await cluster.prepare(await cluster.engine(), 1)
    assert await cluster.creators() == {creator}
    await removed(first, users)
    await cluster.root.execute(f'DROP OWNED BY "{creator}", "{root}" CASCADE')
    await cluster.root.execute("; ".join(f'DROP ROLE "{row[0]}"' for row in await cluster.root.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname ~ $1", f"^{root}_")))  # fmt: skip
    await cluster.prepare(await cluster.engine(), 1)
    [another] = await cluster.creators()
    assert another.startswith(f"{root}_")
    assert another != creator


async def test_creator_dropped_by_hand(cluster: Cluster) -> None:
    """A creator that somebody dropped is replaced without an error; users that it had say what would let them be removed."""
    engine = await cluster.engine()
    orphans = await cluster.prepare(engine, 2)
    [creator] = await cluster.creators()
    await cluster.root.execute(f'DROP OWNED BY "{creator}" CASCADE; DROP ROLE "{creator}"')
    others = await cluster.prepare(engine, 2)
    errors = await removed(engine, [*orphans, *others])
    assert {type(error) for error in errors} == {UserRemains}
    remedies = {statement for error in errors if isinstance(error, UserRemains) for statement in error.remedy}
    assert remedies == {f'GRANT "{user.name}" TO "limited" WITH ADMIN OPTION' for user in orphans}
    assert set(await cluster.makers()) == set()
    for statement in sorted(remedies):
        await cluster.root.execute(statement)
    assert await removed(engine, orphans) == []


async def test_missing_group_is_named_with_its_grant(cluster: Cluster) -> None:
    """A group that the login can't hand out fails the lease with the exact statement; once it was run, creators make the users."""
    engine = await cluster.engine()
    grant = 'GRANT "writers" TO "limited" WITH ADMIN OPTION, INHERIT FALSE, SET FALSE'
    text = 'CREATE ROLE "{{name}}" LOGIN PASSWORD \'{{password}}\'; GRANT Writers TO "{{name}}"'
    for terms in (Terms(options={"grant_roles": ["writers", "readers"]}), Terms(creation=(text,))):
        with pytest.raises(InstructionsFailed) as raised:
            await engine.create(await order(engine, terms))
        assert grant in str(raised.value)
        [outcome] = await engine.prepare([await order(engine, terms)])
        assert grant in str(outcome.error)
        await cluster.root.execute(grant)
        await engine.create(await order(engine, terms))
        await cluster.root.execute('REVOKE "writers" FROM "limited" CASCADE')
    assert set((await cluster.makers()).values()) <= await cluster.creators()


@pytest.mark.parametrize(
    "right", ['GRANT SELECT ON goods TO "{{name}}"', 'ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO "{{name}}"']
)
async def test_statements_that_need_the_login_itself(cluster: Cluster, right: str) -> None:
    """What only the login may do, such as granting on its tables, still works: it makes those users itself, and removes them."""
    await cluster.root.execute("ALTER TABLE goods OWNER TO limited")
    engine = await cluster.engine()
    terms = Terms(creation=("CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'", right))
    users = await cluster.prepare(engine, 2, terms)
    assert set((await cluster.makers()).values()) == {"limited"}
    spread = await cluster.prepare(engine, 1)
    assert not failures(await engine.enable(longer([*users, *spread])))
    assert await removed(engine, [*users, *spread]) == []


async def test_statements_that_leave_another_role(cluster: Cluster) -> None:
    """RESET ROLE in a role's statements is no escape, and the next user has a creator again; another role left set is refused."""
    engine = await cluster.engine()
    makes = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"
    await cluster.prepare(engine, 1, Terms(creation=(makes, "RESET ROLE", 'GRANT readers TO "{{name}}"')))
    await cluster.root.execute("GRANT readers TO limited WITH SET TRUE")
    with pytest.raises(InstructionsFailed, match="left another role set"):
        await engine.create(await order(engine, Terms(creation=(makes, "SET ROLE readers"))))
    await cluster.prepare(engine, 1)
    assert set((await cluster.makers()).values()) <= await cluster.creators()


async def test_group_that_was_taken_from_the_login(cluster: Cluster) -> None:
    """A group that the login may hand out no more fails its own users alone, and is handed out again as soon as it may be."""
    await cluster.root.execute("GRANT writers TO limited WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    engine = await cluster.engine()
    terms = Terms(options={"grant_roles": ["writers"]})
    await cluster.prepare(engine, 1, terms)
    await cluster.root.execute("REVOKE writers FROM limited CASCADE")
    with pytest.raises(InstructionsFailed, match='GRANT "writers" TO "limited" WITH ADMIN OPTION'):
        await engine.create(await order(engine, terms))
    await cluster.prepare(engine, 1)
    await cluster.root.execute("GRANT writers TO limited WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    await cluster.prepare(engine, 1, terms)
    assert set((await cluster.makers()).values()) <= await cluster.creators()


async def test_group_that_is_only_mentioned(cluster: Cluster, few: int) -> None:
    """Statements that name a group without granting it are spread again once the login may hand out that group no more."""
    await cluster.root.execute("GRANT writers TO limited WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    engine = await cluster.engine()
    terms = Terms(creation=(*BY_STATEMENTS.creation, "/* not writers */ SELECT 1"))
    await cluster.prepare(engine, few, terms)
    await cluster.root.execute("REVOKE writers FROM limited CASCADE")
    await cluster.prepare(engine, 1, terms)
    [user] = await cluster.prepare(engine, 1, terms)
    assert (await cluster.makers())[user.name] in await cluster.creators()


async def test_creator_renamed_by_hand(cluster: Cluster) -> None:
    """Users of a creator that somebody gave another name are turned on and removed by that name, and new ones made."""
    engine = await cluster.engine()
    users = await cluster.prepare(engine, 2)
    [creator] = await cluster.creators()
    await cluster.root.execute(f'ALTER ROLE "{creator}" RENAME TO "{creator}_old"')
    users += await cluster.prepare(engine, 1)
    assert not failures(await engine.enable(longer(users)))
    assert await removed(engine, users) == []


async def test_connections_act_as_the_login_unless_told_otherwise(cluster: Cluster) -> None:
    """After a creator acted, whoever takes the connection next acts as the login itself."""
    engine = await cluster.engine()
    await cluster.prepare(engine, 1)
    async with engine._lanes.general.pinned() as session:
        assert await session.wire.fetchval("SELECT current_user::text") in await cluster.creators()
    async with engine._lanes.general.session() as session:
        assert await session.wire.fetchval("SELECT current_user::text") == "limited"


async def test_renewal_statements(cluster: Cluster) -> None:
    """A role's own statements at a renewal may do what the user's creator may, and what the login may."""
    await cluster.root.execute("ALTER TABLE goods OWNER TO limited")
    engine = await cluster.engine()
    texts = ('ALTER ROLE "{{name}}" CONNECTION LIMIT 3', 'GRANT SELECT ON goods TO "{{name}}"')
    [user] = await cluster.prepare(engine, 1, Terms(options=BY_GROUP.options, renewal=texts))
    assert not failures(await engine.extend(longer([user])))
    assert await cluster.root.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", user.name) == 3
    assert await cluster.root.fetchval("SELECT has_table_privilege($1::name, 'goods', 'SELECT')", user.name)
    assert await removed(engine, [user]) == []


async def test_planted_root_is_not_used(cluster: Cluster) -> None:
    """A role that a stranger made to look like the root, granted to our login, gets none of our users: the stranger would rule them."""
    trap = f"broker_{cluster.broker}_abcdef"
    await cluster.run_as("stranger", [
        f"CREATE ROLE {trap} CREATEROLE", f"COMMENT ON ROLE {trap} IS 'broker-creators:v1:{cluster.broker}'",
        f"GRANT {trap} TO limited WITH SET TRUE, ADMIN TRUE",
    ])  # fmt: skip
    await cluster.prepare(await cluster.engine(), 1)
    [creator] = await cluster.creators()
    assert not creator.startswith(trap)


async def test_brokers_do_not_share_creators(cluster: Cluster) -> None:
    """Two brokers with one login keep to creators of their own."""
    await cluster.prepare(await cluster.engine(), 1)
    await cluster.prepare(await cluster.engine(broker="another"), 1)
    assert len(await cluster.creators()) == len(set((await cluster.makers()).values())) == 2


async def test_login_may_be_changed(cluster: Cluster, few: int) -> None:
    """A login that takes over says which one grant it lacks; after it all users are turned on, extended and removed as before."""
    users = await cluster.prepare(await cluster.engine(), 6)
    engine = await cluster.engine("second")
    [creator, *_] = await cluster.creators()
    grant = f'GRANT "{creator.rpartition("_")[0]}" TO "second" WITH SET TRUE, INHERIT FALSE'
    assert all(grant in str(error) for error in failures(await engine.enable(longer(users))))
    refused = failures(await engine.disable(users))
    assert [error.remedy for error in refused if isinstance(error, UserRemains)] == [(grant,)] * len(users)
    await cluster.run_as("limited", [grant])
    await cluster.root.execute("ALTER ROLE limited NOLOGIN")
    assert not failures(await engine.enable(longer(users)))
    assert not failures(await engine.extend(longer(users)))
    fresh = await cluster.prepare(engine, 1)
    assert (await cluster.makers())[fresh[0].name] not in {(await cluster.makers())[user.name] for user in users}
    assert await removed(engine, [*users, *fresh]) == []
    assert await cluster.makers() == {}


async def test_changed_login_and_users_that_the_former_made_itself(cluster: Cluster) -> None:
    """For users that no creator made, the grant is one for each user."""
    await cluster.root.execute("ALTER TABLE goods OWNER TO limited")
    text = 'CREATE ROLE "{{name}}" LOGIN PASSWORD \'{{password}}\'; GRANT SELECT ON goods TO "{{name}}"'
    [user] = await cluster.prepare(await cluster.engine(), 1, Terms(creation=(text,)))
    engine = await cluster.engine("second")
    [error] = failures(await engine.disable([user]))
    assert isinstance(error, UserRemains)
    assert error.remedy == (f'GRANT "{user.name}" TO "second" WITH ADMIN OPTION',)
    await cluster.run_as("limited", error.remedy)
    assert not failures(await engine.disable([user]))


async def test_user_that_somebody_made_a_superuser_is_told(cluster: Cluster) -> None:
    """No grant would let a plain login change it: it says what does, and then it is removed as any other."""
    engine = await cluster.engine()
    [user] = await cluster.prepare(engine, 1)
    await cluster.root.execute(f'ALTER ROLE "{user.name}" SUPERUSER')
    remedy = f'ALTER ROLE "{user.name}" NOSUPERUSER'
    assert str(failures(await engine.enable(longer([user])))[0]).endswith(f"; {remedy}")
    [error] = failures(await engine.disable([user]))
    assert isinstance(error, UserRemains)
    assert error.remedy == (remedy,)
    await cluster.root.execute(remedy)
    assert await removed(engine, [user]) == []


async def test_roles_are_set_together_and_given_back_one_by_one(cluster: Cluster, few: int) -> None:
    """Statements of many creators run in one transaction, each as its own role and the last as nobody else than our login."""
    engine = await cluster.engine()
    users = await cluster.prepare(engine, 3 * few)
    by_maker = {maker: user for user, maker in (await cluster.makers()).items()}
    assert len(by_maker) == 3
    async with engine._lanes.revoking.session() as session:
        roles = [*by_maker, ""]
        text = "SELECT set_config('test.seen{place}', current_user, false)"
        await run_as_each(session, {role: text.format(place=place) for place, role in enumerate(roles)})
        seen = [await session.wire.fetchval(f"SELECT current_setting('test.seen{place}')") for place in range(len(roles))]
        assert seen == [*by_maker, "limited"]
        first, second, third = by_maker
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run_as_each(session, {
                first: f'DROP ROLE "{by_maker[first]}"', second: f'DROP ROLE "{by_maker[first]}"', third: f'DROP ROLE "{by_maker[third]}"',
            })  # fmt: skip
        assert await session.wire.fetchval("SELECT current_user::text") == "limited"
        assert set(await cluster.makers()) == {user.name for user in users}


async def test_one_refused_user_keeps_no_others(cluster: Cluster, few: int) -> None:
    """A user that its creator may drop no more stays alone, with its remedy; those of all creators beside it go."""
    engine = await cluster.engine()
    users = await cluster.prepare(engine, 3 * few)
    makers, odd = await cluster.makers(), users[few]
    assert not failures(await engine.disable(users))
    await cluster.root.execute(f'REVOKE "{odd.name}" FROM "{makers[odd.name]}" CASCADE')
    [error] = failures(await engine.drop(users))
    assert isinstance(error, UserRemains)
    assert error.remedy == (f'GRANT "{odd.name}" TO "limited" WITH ADMIN OPTION',)
    assert set(await cluster.root.fetch("SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'v-%'")) == {(odd.name,)}


@pytest.mark.parametrize(
    ("taken", "given", "kept"),
    [
        ("REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC", "GRANT TEMPORARY ON DATABASE postgres TO PUBLIC", 0),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE limited REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
            "ALTER DEFAULT PRIVILEGES FOR ROLE limited GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
            1,
        ),
    ],
)
async def test_users_are_removed_on_hardened_servers(cluster: Cluster, few: int, taken: str, given: str, kept: int) -> None:
    """Where temporary objects were taken from everybody, or what one login makes is no longer everybody's to use, nothing is missed."""
    await cluster.root.execute(taken)
    try:
        engine = await cluster.engine()
        users = await cluster.prepare(engine, 2 * few)
        async with engine._lanes.revoking.session() as session:
            await run_as_each(session, dict.fromkeys((await cluster.makers()).values(), "SELECT 1"))
            assert len(session.routines or ()) == kept
        assert await removed(engine, users) == []
        assert await cluster.makers() == {}
    finally:
        await cluster.root.execute(given)


async def test_users_are_removed_where_the_function_was_lost(cluster: Cluster, few: int) -> None:
    """What is temporary may be discarded under a connection; the next batch over it goes all the same."""
    engine = await cluster.engine()
    assert await removed(engine, await cluster.prepare(engine, 2 * few)) == []
    users = await cluster.prepare(engine, 2 * few)
    async with engine._lanes.revoking.session() as session:
        assert session.routines
        await session.run("DISCARD TEMP")
    assert await removed(engine, users) == []
    assert await cluster.makers() == {}


async def test_revocation_statements_run_as_who_made_the_user(cluster: Cluster) -> None:
    """So dropping the user needs no look through all that live. What only the login may do, it does, and the first try leaves nothing."""
    await cluster.root.execute(
        "ALTER TABLE goods OWNER TO limited; CREATE TABLE trace (who text); GRANT INSERT ON trace TO PUBLIC"
    )
    texts = ("INSERT INTO trace VALUES (current_user)", 'DROP OWNED BY "{{name}}"', 'DROP ROLE "{{name}}"')
    engine = await cluster.engine()
    granted, owner = await cluster.prepare(engine, 2, replace(BY_GROUP, revocation=texts))
    [creator] = set((await cluster.makers()).values())
    await cluster.root.execute(f'SET ROLE limited; GRANT SELECT ON goods TO "{granted.name}"; RESET ROLE')
    await cluster.root.execute(f'CREATE TABLE own (); ALTER TABLE own OWNER TO "{owner.name}"')
    assert not failures(await engine.release([granted, owner]))
    assert await cluster.makers() == {}
    assert sorted(row[0] for row in await cluster.root.fetch("SELECT who FROM trace")) == [creator, "limited"]
    await cluster.root.execute("DROP TABLE trace")


async def test_statements_written_for_vault_remove_the_user(scene: Any, errors_of: Any) -> None:
    """With either login, a role's own statements may drop what the user owns and was granted, and then the user, as Vault's do."""
    texts = (
        'REVOKE ALL PRIVILEGES ON ALL TABLES IN SCHEMA public FROM "{{name}}"',
        'DROP OWNED BY "{{name}}"',
        'DROP ROLE "{{name}}"',
    )
    if scene.place.limited:
        # With no right of its own on a table nobody may revoke there, in Vault neither.
        texts = texts[1:]
    user, _ = await scene.create(replace(BY_GROUP, revocation=texts))
    await scene.root.execute(f'CREATE TABLE own_{user.number} (); ALTER TABLE own_{user.number} OWNER TO "{user.name}"')
    other, _ = await scene.create(replace(BY_GROUP, revocation=('DROP ROLE "{{name}}"',)))
    users = [user, other]
    assert not any(errors_of(await scene.engine.disable(users), users))
    assert not any(errors_of(await scene.engine.end_sessions(users), users))
    assert not any(errors_of(await scene.engine.release(users), users))
    assert not any([await scene.exists(each.name) for each in users])
    said = await scene.remove(users)
    assert not any(error for errors in said.values() for error in errors)


async def test_statements_that_hand_over_run_as_the_login(scene: Any) -> None:
    """What only the login may do, such as handing over to a role that it may become, works beside dropping the user."""
    texts = ('REASSIGN OWNED BY "{{name}}" TO heir', 'DROP OWNED BY "{{name}}"', 'DROP ROLE "{{name}}"')
    user, _ = await scene.create(replace(BY_GROUP, revocation=texts))
    table = f"handed_{user.number}"
    await scene.root.execute(f'CREATE TABLE {table} (); ALTER TABLE {table} OWNER TO "{user.name}"')
    said = await scene.remove([user])
    assert not any(error for errors in said.values() for error in errors)
    owner = await scene.root.fetchval(
        "SELECT relowner::regrole::text FROM pg_class WHERE relname = $1", f"handed_{user.number}"
    )
    assert owner == "heir"
    await scene.root.execute(f"DROP TABLE handed_{user.number}")


async def test_no_creators_where_none_are_needed(scene: Any) -> None:
    """A superuser, and any login up to PostgreSQL 15, makes its users itself; a plain one on 16 and later does not."""
    await scene.create()
    pattern = f"^broker_{scene.origin.broker}_"
    made = await scene.root.fetchval("SELECT count(*) FROM pg_roles WHERE rolname ~ $1", pattern)
    assert bool(made) == (scene.place.limited and scene.place.new)
