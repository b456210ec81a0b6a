"""What a server shows of passwords and verifiers when it logs and counts all that it can: nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from broker.engines.protocol import NewUser
from broker.errors import EngineError
from broker.model import Terms
from broker.secret import Secret
from broker.testing.postgresql import PostgresServer
from broker_postgresql import rehearse
from broker_postgresql.scram import check_form

ROLE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
LOUD = {
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "log_statement": "all",
    "log_duration": "on",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose",
    "log_min_messages": "info",
    "log_min_error_statement": "info",
    "log_connections": "on",
    "log_lock_waits": "on",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_verbose": "on",
    "track_activity_query_size": "16384",
    "max_prepared_transactions": "10",
    "fsync": "off",
}
"""As talkative as an operator can make it."""
FAILING = (
    (ROLE, "SELECT 1 / 0"),
    (ROLE, "COMMIT"),
    (ROLE.replace("'{{password}}'", "'{{password}}"),),
    (ROLE.replace("'{{password}}'", "{{password}}"),),
    ('CREATE ROLE "{{name}}" LOGIN PASSWORD \'{{password}}',),
    ("DO $$ BEGIN RAISE EXCEPTION '{{password}}'; END $$",),
    ("SELECT '{{password}}'::int",),
    (ROLE, "RESET ALL", "SELECT nothing"),
)
QUIET = "SET ON PARAMETER pg_stat_statements.track_utility, log_error_verbosity"


@pytest.fixture(scope="module")
def prepared_server(binaries: Path, set_up: Callable[[PostgresServer], None]) -> Iterator[PostgresServer]:
    """A server of the module's own, which tells all."""
    with PostgresServer(binaries, extra_config=LOUD) as server:
        set_up(server)
        yield server


@pytest.fixture
async def nested(place: Any) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Has statistics of nested statements kept, and gives the plain login the rights that the manual names for this, or takes them."""
    root = await place.root()

    async def set_rights(change: str) -> None:
        await root.execute(change)
        await root.execute("SELECT pg_stat_statements_reset()")

    await root.execute("ALTER DATABASE app SET pg_stat_statements.track = 'all'")
    yield set_rights
    await root.execute("ALTER DATABASE app RESET pg_stat_statements.track")
    await set_rights(f"REVOKE {QUIET} FROM limited")
    await root.close()


def secrets_of(order: NewUser) -> list[str]:
    """What must not show: the password, and the parts of its verifier that only the server should know; as text, and spelt otherwise."""
    texts = [order.password.text.reveal()]
    if order.password.verifier:
        texts += order.password.verifier.reveal().split("$")[2].split(":")
    hexes = [text.encode().hex() for text in texts]
    bits = [f"{int.from_bytes(text.encode(), 'big'):b}" for text in texts]
    return [*texts, *hexes, *bits]


async def shown_by(scene: Any) -> str:
    """Everything that the server shows: last statements of sessions, statistics, log."""
    rows = await scene.root.fetch("SELECT query FROM pg_stat_activity")
    rows += await scene.root.fetch("SELECT query FROM pg_stat_statements")
    return scene.place.server.log() + "\n".join(row[0] for row in rows)


async def live_through(scene: Any, engine: Any, order: NewUser, longer: Callable[..., Any]) -> None:
    """The whole life of a user that was ordered ahead."""
    [made] = await engine.prepare([order])
    assert made.error is None
    user = replace(order.user, identity=made.identity)
    for verb in (engine.enable, engine.extend):
        [outcome] = await verb([longer(user)])
        assert outcome.error is None
    await scene.session(user.name, order.password.text)
    for errors in (await scene.remove([user])).values():
        assert errors == [None]


async def cut_off(scene: Any, engine: Any, how: str) -> NewUser:
    """An order whose statements were under way when the server was told to end them."""
    order = await scene.order(Terms(creation=(ROLE, "SELECT pg_sleep(60)")))
    creating = asyncio.create_task(engine.create(order))
    sleeping = "application_name ~ '^broker/' AND wait_event = 'PgSleep'"
    while not creating.done() and not await scene.root.fetch(f"SELECT {how}(pid) FROM pg_stat_activity WHERE {sleeping}"):
        await asyncio.sleep(0.01)
    with pytest.raises(EngineError):
        await creating
    return order


@pytest.mark.parametrize("authentication", ["scram-sha-256", "password"])
async def test_no_secret_shows_when_everything_is_logged(scene: Any, longer: Any, authentication: str) -> None:
    """Users on demand and prepared, with and without statements of the role's own, renewed and revoked: no secret, yet what was done."""
    engine = await scene.another_engine(max_open_connections=2, password_authentication=authentication)
    kinds = [None, Terms(creation=(ROLE,)), Terms(creation=(ROLE,), renewal=('ALTER ROLE "{{name}}" CONNECTION LIMIT 7',))]
    orders = [await scene.order(kind) for kind in kinds * 2]
    orders = [replace(order, password=await engine.new_password()) for order in orders]
    for order in orders[:3]:
        user = replace(order.user, identity=await engine.create(order))
        [outcome] = await engine.extend([longer(user)])
        assert outcome.error is None
        await scene.session(user.name, order.password.text)
        assert all(errors == [None] for errors in (await scene.remove([user])).values())
    for order in orders[3:]:
        await live_through(scene, engine, order, longer)
    text = await shown_by(scene)
    for order in orders:
        assert [secret for secret in secrets_of(order) if secret in text] == []
        # A superuser's sessions leave details out.
        talkative = not scene.place.limited or re.search(
            rf"CREATE ROLE \W+{order.user.name}\W+ (LOGIN )?PASSWORD \W*\[[0-9a-f]{{24}}\]", text
        )
        assert talkative, "the log is not as talkative as it should be"


async def test_no_secret_of_a_failure_shows_when_everything_is_logged(scene: Any) -> None:
    """Whatever is wrong with a role's statements, on demand or ahead, alone or beside others."""
    orders = [await scene.order(Terms(creation=creation)) for creation in FAILING]
    for order in orders:
        with pytest.raises(EngineError) as refused:
            await scene.engine.create(order)
        assert not [secret for secret in secrets_of(order) if secret in str(refused.value)]
    outcomes = await scene.engine.prepare([*orders, await scene.order()])
    assert [outcome.error is None for outcome in outcomes].count(True) == 1
    text = await shown_by(scene)
    for order in orders:
        assert [secret for secret in secrets_of(order) if secret in text] == []


@pytest.mark.parametrize("authentication", ["scram-sha-256", "password"])
async def test_a_rehearsal_has_no_secret_to_show(scene: Any, nested: Any, authentication: str) -> None:
    """Whatever shows of a role that is rehearsed, working or not, is the text that says of itself to be none; no user has it."""
    await nested(f"REVOKE {QUIET} FROM limited")
    engine, before = await scene.another_engine(password_authentication=authentication), len(scene.place.server.log())
    for kind in (scene.terms, Terms(creation=(ROLE,)), Terms(creation=(ROLE,), options={"grant_roles": ["readers"]})):
        await engine.rehearse(kind)
    for creation in FAILING[:2]:
        with pytest.raises(EngineError):
            await engine.rehearse(Terms(creation=creation))
    text = (await shown_by(scene))[before:]
    shown = re.findall(r"CREATE ROLE \W+v-rehearsa\S+ (?:LOGIN )?PASSWORD '+([^']*)'", text)
    assert shown, "the server is not as talkative as it should be"
    assert set(shown) == {rehearse.PASSWORD if authentication == "password" else rehearse.VERIFIER}


async def test_what_stands_for_a_password_is_taken_for_one(scene: Any) -> None:
    """By what servers ask of passwords (`passwordcheck`), and as a verifier to which the text itself is no key."""
    check_form(Secret(rehearse.VERIFIER))
    await scene.root.execute("LOAD 'passwordcheck'")
    for name, secret in (("plain", rehearse.PASSWORD), ("hashed", rehearse.VERIFIER)):
        await scene.root.execute(f"CREATE ROLE \"v-{name}\" LOGIN PASSWORD '{secret}'")
    stored = await scene.root.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'v-hashed'")
    assert stored == rehearse.VERIFIER
    for word in (rehearse.PASSWORD, rehearse.VERIFIER):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(scene.place.server.dsn("v-hashed", Secret(word), "app").reveal())


async def test_no_secret_shows_of_a_call_that_is_cancelled(scene: Any) -> None:
    """By hand or by a time limit: the server does not log what the block was doing."""
    order = await cut_off(scene, scene.engine, "pg_cancel_backend")
    text = await shown_by(scene)
    assert [secret for secret in secrets_of(order) if secret in text] == []


async def test_a_key_that_was_reset_is_made_anew(scene: Any) -> None:
    """After a failure a connection's settings are reset; the next users are made as before, with their own passwords."""
    for _ in range(2):
        with pytest.raises(EngineError):
            await scene.engine.create(await scene.order(Terms(creation=("SELECT 1 / 0",))))
        user, password = await scene.create()
        await scene.session(user.name, password)


async def test_with_two_rights_nothing_shows_at_all(scene: Any, nested: Any) -> None:
    """Neither in statistics of nested statements, nor in the log of a session that is ended from outside."""
    await nested(f"GRANT {QUIET} TO limited")
    engine, order = await scene.another_engine(), await scene.order()
    await engine.create(order)
    ended = await cut_off(scene, engine, "pg_terminate_backend")
    text = await shown_by(scene)
    assert [secret for one in (order, ended) for secret in secrets_of(one) if secret in text] == []


async def test_what_a_plain_login_cannot_hide(scene: Any, place: Any, nested: Any) -> None:
    """As the manual says: without the rights it can hide neither. What shows then are verifiers, with which nobody can log in."""
    if not place.limited:
        return
    await nested(f"REVOKE {QUIET} FROM limited")
    engine, order = await scene.another_engine(), await scene.order()
    await engine.create(order)
    ended = await cut_off(scene, engine, "pg_terminate_backend")
    counted = "\n".join(row[0] for row in await scene.root.fetch("SELECT query FROM pg_stat_statements"))
    log = place.server.log()
    assert any(secret in counted for secret in secrets_of(order))
    assert any(secret in log for secret in secrets_of(ended))
    assert not any(secret in log for secret in secrets_of(order))
    assert not any(one.password.text.reveal() in log + counted for one in (order, ended))


async def test_pads_are_used_once(scene: Any) -> None:
    """The same secret never looks the same twice: what is logged of two calls says nothing of what they share."""
    order = await scene.order()
    await scene.engine.create(order)
    if not scene.place.limited:
        return  # A superuser keeps what is sent out of the log altogether.
    again = await scene.order()
    await scene.engine.create(replace(again, password=order.password))
    lines = [line for line in scene.place.server.log().splitlines() if "$3 = " in line]
    first, second = (
        {line.partition("$3 = ")[2].partition(",")[0] for line in lines if order.user.name in line} for order in (order, again)
    )
    assert first
    assert second
    assert first.isdisjoint(second)


async def test_a_server_logs_parameters_unless_they_are_veiled(scene: Any) -> None:
    """The reason for the veil: what another session sends as a parameter stands in the log."""
    wire: Any = await asyncpg.connect(scene.place.server.dsn(scene.place.login, scene.place.password, "app").reveal())
    await wire.fetch("SELECT set_config('x.y', $1, false)", "as-clear-as-day")
    await wire.close()
    assert "as-clear-as-day" in scene.place.server.log()


async def test_a_wrong_key_makes_no_user(scene: Any) -> None:
    """What a wrong key uncovers is never taken for a password: the call fails, or goes on with a new key."""
    engine = await scene.another_engine(max_open_connections=1)
    for key in ("ab" * 32, "cd" * 32, "ef" * 32):
        await engine.create(await scene.order())
        [session] = engine._lanes.general._idle
        session.veil.take(key)
        order = await scene.order(Terms(creation=(ROLE,)))
        [error] = await asyncio.gather(engine.create(order), return_exceptions=True)
        assert await scene.exists(order.user.name) == (not isinstance(error, EngineError))
        if not isinstance(error, EngineError):
            await scene.session(order.user.name, order.password.text)
