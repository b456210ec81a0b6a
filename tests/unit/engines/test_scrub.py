"""Errors without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.engines.scrub import broken_promise, clean_error, scrubbed
from broker.errors import DatabaseUnavailable, EngineError, InvalidRequest, UserMissing, UserRemains
from broker.secret import Secret


@pytest.mark.parametrize(
    ("text", "secret", "expected"),
    [
        ("password p4ss refused", "p4ss", "password [secret] refused"),
        ("p4ssp4ss", "p4ss", "[secret][secret]"),
        ("postgresql://u:p%2F%40s@h/d", "p/@s", "postgresql://u:[secret]@h/d"),
        ("PASSWORD 'it''s'", "it's", "PASSWORD '[secret]'"),
        (r"near 'a\\b'", r"a\b", "near '[secret]'"),
        ("nothing", "", "nothing"),
        ("secret", "secret", "[secret]"),
        ("a.c abc", "a.c", "[secret] abc"),
        ("a%20b%2Fc a%20b/c a+b%2Fc", "a b/c", "[secret] [secret] [secret]"),
    ],
)
def test_secrets_are_replaced_in_each_form(text: str, secret: str, expected: str) -> None:
    """A secret goes as it is, as a URL writes it, and as a literal quotes it; an empty one ruins nothing."""
    assert scrubbed(text, [Secret(secret)]) == expected


def test_longest_secret_goes_first() -> None:
    """A secret that begins another one leaves no rest of it."""
    assert scrubbed("p4ss p4", [Secret("p4"), Secret("p4ss")]) == "[secret] [secret]"


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=8))
def test_no_secret_survives(secrets: list[str], order: list[int]) -> None:
    """Secrets that hold each other, touch each other or look like the replacement leave nothing of themselves."""
    text = "|".join(secrets[place % len(secrets)] for place in order)
    rest = scrubbed(text, [Secret(secret) for secret in secrets]).replace("[secret]", "")
    assert not any(secret in rest for secret in secrets if "|" not in secret)


def test_cleaned_error_is_a_fresh_one() -> None:
    """Cause, context, traceback and a plugin's own attributes stay behind; class, remedy and delay are kept."""

    class OwnKind(UserMissing):
        """What a plugin made of it."""

    def refuse() -> None:
        raise OwnKind("no p4ss here") from RuntimeError("p4ss in the driver")

    with pytest.raises(OwnKind) as raised:
        refuse()
    caught = raised.value
    caught.statement = "p4ss"  # type: ignore[attr-defined]  # as a plugin may
    clean = clean_error(caught, [Secret("p4ss")])
    assert type(clean) is UserMissing
    assert (str(clean), clean.__cause__, clean.__context__, clean.__traceback__, vars(clean)) == (
        "no [secret] here", None, None, None, {},
    )  # fmt: skip


def test_facts_of_errors_are_kept() -> None:
    """What a caller acts on survives cleaning, scrubbed where it is text."""
    secrets = [Secret("p4ss")]
    remains = clean_error(UserRemains("x", remedy=["ALTER ... 'p4ss'"]), secrets)
    assert isinstance(remains, UserRemains)
    assert remains.remedy == ("ALTER ... '[secret]'",)
    away = clean_error(DatabaseUnavailable("x", retry_after_s=7), secrets)
    assert isinstance(away, DatabaseUnavailable)
    assert away.retry_after_s == 7
    assert isinstance(clean_error(InvalidRequest("x"), secrets), InvalidRequest)


def test_broken_promise_names_the_class_alone() -> None:
    """What an engine must not raise may hold anything, so its text is dropped."""
    error = broken_promise("app", "create", ValueError("p4ss"))
    assert type(error) is EngineError
    assert str(error) == "create on connection app failed inside the engine: ValueError"
