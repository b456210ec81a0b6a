"""Reading connection strings."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidRequest
from broker.secret import Secret
from broker_postgresql.target import Target, holds_password, masked, read_target

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=20)


def read(url: str, username: str = "me", password: str = "pw", *, escape: bool = True) -> Target:
    """The target of a connection string."""
    return read_target(url, username, Secret(password), escape=escape)


@pytest.mark.parametrize(
    ("url", "hosts", "database", "user", "password"),
    [
        ("postgresql://{{username}}:{{password}}@db:6000/app", (("db", 6000),), "app", "me", "pw"),
        ("postgres://u:p%40x@db/app", (("db", 5432),), "app", "u", "p@x"),
        ("postgresql://a,b:1,[::1]:2/app", (("a", 5432), ("b", 1), ("::1", 2)), "app", "me", "pw"),
        ("postgresql:///app?host=/run/pg&port=7", (("/run/pg", 7),), "app", "me", "pw"),
        ("postgresql://%2Frun%2Fpg/app", (("/run/pg", 5432),), "app", "me", "pw"),
        ("postgresql://db", (("db", 5432),), "me", "me", "pw"),
        ("host=a,b port=5 dbname=app user={{username}} password='{{password}}'", (("a", 5), ("b", 5)), "app", "me", "pw"),
        ("host = a  dbname = 'it''s' ", (), "", "", ""),
        (r"host=a dbname='o\'b' user=x\ y", (("a", 5432),), "o'b", "x y", "pw"),
    ],
)
def test_both_forms_are_read(url: str, hosts: object, database: str, user: str, password: str) -> None:
    """Hosts, database and login are what libpq would read, and what cannot be read is refused."""
    if not hosts:
        with pytest.raises(InvalidRequest):
            read(url)
        return
    found = read(url)
    assert (found.hosts, found.database, found.user, found.password.reveal()) == (hosts, database, user, password)


@given(username=TEXT, password=TEXT)
def test_any_login_survives_both_forms(username: str, password: str) -> None:
    """A login put in for its variables comes out as it was, whatever characters it has."""
    for url in (
        "postgresql://{{username}}:{{password}}@h/d",
        "host=h dbname=d user={{username}} password={{password}}",
        "host=h user='{{username}}' password='{{password}}' dbname=d",
    ):
        found = read(url, username, password)
        assert (found.user, found.password.reveal(), found.hosts) == (username, password, (("h", 5432),))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://h/d",
        "postgresql://h:0/d",
        "postgresql://h:65536/d",
        "postgresql://h:1:2/d",
        "postgresql://[::1/d",
        "postgresql://a,b,c/d?port=1,2",
        "postgresql://" + ",".join("h" * 17) + "/d",
        "postgresql://h/d?sslmode=maybe",
        "postgresql://h/d?connect_timeout=-1",
        "postgresql://h/d?sslrootcert=/nowhere/root.pem",
        "host=h dbname='open",
        "postgresql://a%00b/d",
        "postgresql://a..b/d",
        "postgresql://" + "a" * 64 + ".example/d",
        "host=%2Fvar\x00 dbname=d",
        "host=\udc80 dbname=d",
    ],
)
def test_unreadable_strings_are_refused(url: str) -> None:
    """What leads nowhere is refused by the field's name."""
    with pytest.raises(InvalidRequest, match="connection_url"):
        read(url or "=")


@given(st.text(max_size=60))
def test_any_string_is_read_or_refused(text: str) -> None:
    """No string does more than be refused, and showing it never fails."""
    for url in (text, f"postgresql://{text}", f"host={text}"):
        with suppress(InvalidRequest):
            read(url)
        masked(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hush@h:1/d?sslmode=disable", "postgresql://u:xxxxx@h:1/d?sslmode=disable"),
        ("postgresql://u@h/d?password=hush&x=1", "postgresql://u@h/d?password=xxxxx&x=1"),
        ("host=h password=hush dbname=d", "host=h password=xxxxx dbname=d"),
        ("password='hu sh' host=h", "password=xxxxx host=h"),
        ("postgresql://{{username}}:{{password}}@h/d", "postgresql://{{username}}:{{password}}@h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("host=h user=u PASSWORD=hush", "host=h user=u PASSWORD=xxxxx"),
        ("postgresql://u@h/db?%70assword=hush", "postgresql://u@h/db?%70assword=xxxxx"),
        ("postgresql://u:{{password}}@h/db?sslpassword=hush", "postgresql://u:xxxxx@h/db?sslpassword=xxxxx"),
        ("host=h sslpassword=hush", "host=h sslpassword=xxxxx"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    """A password in the string itself is told from a variable, and shown as `xxxxx`."""
    assert masked(url) == shown
    assert holds_password(url) == (url != shown)


def test_unused_parameters_are_named() -> None:
    """Parameters that mean nothing here are listed; those that we set ourselves are not."""
    found = read("postgresql://h/d?options=-c&application_name=x&channel_binding=require&target_session_attrs=primary")
    assert found.unused == ("channel_binding", "options")
