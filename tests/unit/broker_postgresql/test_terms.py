"""A role's options and statements."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from broker.errors import InvalidRequest
from broker.model import Terms
from broker_postgresql.terms import _GRANT_ON, read_options, warnings_about


def of(**options: Any) -> Terms:
    """Terms with a group, and these options."""
    return Terms(options={"grant_roles": ["readers"], **options})


@pytest.mark.parametrize(
    "options",
    [
        {"grant_roles": 5},
        {"grant_roles": [""]},
        {"grant_roles": ["x" * 64]},
        {"grant_roles": ["a\x00b"]},
        {"owned_objects": "keep"},
        {"owned_objects": "reassign"},
        {"reassign_to": "heir"},
        {"owned_objects": "drop", "reassign_to": "heir"},
        {"connection_limit": -1},
        {"connection_limit": "few"},
        {"settings": {"a b": "c"}},
        {"settings": {"a;b": "c"}},
        {"settings": {"a": "\x00"}},
        {"settings": ["a"]},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    """Each wrong option is refused by name."""
    with pytest.raises(InvalidRequest):
        warnings_about(of(**options))


def test_groups_may_come_as_one_text() -> None:
    """Group roles are also read from a text with commas, as Vault's clients send lists."""
    assert read_options(of(grant_roles="a, b,,c")).grant_roles == ["a", "b", "c"]


@pytest.mark.parametrize("field", ["creation", "revocation", "renewal", "rollback"])
def test_nul_is_refused(field: str) -> None:
    """No statement may hold a NUL."""
    with pytest.raises(InvalidRequest, match=r"_statements: a NUL"):
        warnings_about(Terms(**{field: ("SELECT '\x00'",)}, options={"grant_roles": ["g"]}))


@pytest.mark.parametrize(
    ("statement", "warned"),
    [
        ('GRANT SELECT ON goods TO "{{name}}"', True),
        ('grant select on all tables in schema public to "{{name}}"', True),
        ('GRANT USAGE ON SEQUENCE s TO "{{name}}"', True),
        ('CREATE ROLE x; GRANT INSERT, UPDATE (a)\n ON TABLE t TO "{{name}}";', True),
        ('GRANT readers TO "{{name}}"', False),
        ('GRANT readers TO "{{name}}"; COMMENT ON ROLE x IS y', False),
        ('GRANT USAGE ON SCHEMA app TO "{{name}}"', False),
        ('GRANT CONNECT ON DATABASE app TO "{{name}}"', False),
        ('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA app TO "{{name}}"', False),
    ],
)
def test_direct_grants_on_tables_are_warned_of(statement: str, warned: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Grants on tables and sequences to each user get a warning that recommends a group; others don't."""
    found = warnings_about(Terms(creation=(statement,)))
    assert any("grant_roles" in warning for warning in found) == warned


def test_odd_terms_are_warned_of() -> None:
    """Unknown options, terms that make nobody, and destruction are each answered with a sentence."""
    assert warnings_about(of()) == []
    assert "colour" in warnings_about(of(colour="red"))[0]
    assert "empty" in warnings_about(Terms())[0]
    assert "rollback" in warnings_about(replace(of(), rollback=("SELECT 1",)))[0]
    assert "destroyed" in warnings_about(of(owned_objects="drop"))[0]


def test_text_full_of_grants_is_read_once() -> None:
    """A search that goes beyond the next GRANT would read a long text as often as it has any, and hold up everybody."""
    found = _GRANT_ON.search("GRANT a GRANT SELECT ON goods TO b")
    assert found is not None
    assert found.start() == len("GRANT a ")
    assert not warnings_about(Terms(creation=("GRANT " * 50_000,)))
