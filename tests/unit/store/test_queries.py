"""The named statements: each is there once, is used, and is one statement."""

from __future__ import annotations

import inspect
import sqlite3
from pathlib import Path

from broker.store.sqlite import queries, store
from broker.store.sqlite.queries import SQL


def test_every_statement_is_used() -> None:
    """A statement that nobody names is dead."""
    room = Path(inspect.getfile(store)).parent
    sources = "".join(path.read_text() for path in room.glob("*.py"))
    assert [name for name in SQL if f'"{name}"' not in sources] == []


def test_no_name_is_given_twice() -> None:
    """The second would silently take the place of the first."""
    text = Path(inspect.getfile(queries)).with_name("queries.sql").read_text()
    assert text.count("-- name: ") == len(SQL)


def test_each_is_one_whole_statement() -> None:
    """Each ends with the only semicolon that it has outside comments."""
    for name, sql in SQL.items():
        lines = [line for line in sql.splitlines() if not line.startswith("--")]
        assert sqlite3.complete_statement(sql), name
        assert "".join(lines).count(";") == 1, name
