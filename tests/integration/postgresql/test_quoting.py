"""Quoting, checked by the server itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import EngineError
from broker.testing.postgresql import PostgresServer
from broker_postgresql.quoting import identifier, literal, moment

ODD = st.text(
    st.one_of(st.sampled_from("'\"\\$;-/*%{}\n\t EeUu&"), st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
)
QUIET = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Asker:
    """A session that is asked one thing after the other."""

    def __init__(self, server: PostgresServer) -> None:
        self._runner = asyncio.Runner()
        self._wire: Any = self._runner.run(self._connect(server))

    async def _connect(self, server: PostgresServer) -> Any:
        return await asyncpg.connect(server.superuser_dsn().reveal())

    def ask(self, query: str) -> Any:
        """The one value of a query without parameters, by the simple protocol as the engine's own statements go."""
        return self._runner.run(self._wire.fetchval(query))

    def tell(self, statement: str) -> None:
        """Runs statements."""
        self._runner.run(self._wire.execute(statement))

    def close(self) -> None:
        """Ends the session."""
        self._runner.run(self._wire.close())
        self._runner.close()


@pytest.fixture(scope="module", params=["on", "off"])
def asker(request: pytest.FixtureRequest, postgresql: PostgresServer) -> Iterator[Asker]:
    """A session in each of the two ways to read backslashes."""
    asker = Asker(postgresql)
    asker.tell(f"SET standard_conforming_strings = {request.param}; SET escape_string_warning = off; SET backslash_quote = off")
    yield asker
    asker.close()


@QUIET
@given(text=ODD)
def test_any_text_comes_back(asker: Asker, text: str) -> None:
    """A literal is read as the very text, also inside another literal, as statements in a block are."""
    assert asker.ask(f"SELECT {literal(text)}") == text
    block = f"BEGIN PERFORM set_config('t.t', {literal(text)}, false); END"
    asker.tell(f"DO {literal(block)}")
    assert asker.ask("SELECT current_setting('t.t')") == text


@QUIET
@given(name=ODD.filter(lambda name: 0 < len(name.encode()) <= 63))
def test_any_name_comes_back(asker: Asker, name: str) -> None:
    """A quoted identifier names exactly that, and nothing of it is read as SQL."""
    assert asker.ask(f"SELECT x.n FROM (SELECT 1) AS x (n), LATERAL (SELECT 2 AS {identifier(name)}) y") == 1
    asker.tell(f"DROP ROLE IF EXISTS {identifier('v-' + name[:40])}; CREATE ROLE {identifier('v-' + name[:40])}")
    assert asker.ask(f"SELECT count(*) FROM pg_roles WHERE rolname = {literal('v-' + name[:40])}") == 1
    asker.tell(f"DROP ROLE {identifier('v-' + name[:40])}")


@QUIET
@given(at_ms=st.integers(0, 253_402_300_799_000))
def test_any_moment_comes_back(asker: Asker, at_ms: int) -> None:
    """A moment is read as that moment, whatever the session's time zone and date style are."""
    asker.tell("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'")
    assert asker.ask(f"SELECT (extract(epoch FROM {moment(at_ms)}::timestamptz) * 1000)::bigint") == at_ms


@pytest.mark.parametrize("quote", [identifier, literal])
def test_nul_is_refused(quote: Any) -> None:
    """A NUL, which would end the message to the server, is never sent."""
    with pytest.raises(EngineError):
        quote("a\x00b")
