"""What new and renewed tokens get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.api.auth import TokenCreate
from broker.api.fields import decode
from broker.errors import InvalidRequest
from broker.identity import grants
from broker.identity.settings import TokenSettings
from broker.model import NO_TOKEN, Accessor, Token, TokenFacts, TokenNumber

SETTINGS = TokenSettings(default_ttl=3_600, max_ttl=36_000)
MakeToken = Callable[..., Token]


def order(**fields: object) -> TokenCreate:
    """A request for a token."""
    return decode(TokenCreate, fields)


@pytest.mark.parametrize(
    ("maker", "asked", "got"),
    [
        (("root",), {}, ("root",)),
        (("root",), {"policies": ["app"]}, ("app", "default")),
        (("root",), {"policies": "b,A"}, ("a", "b", "default")),
        (("root",), {"policies": ["app"], "no_default_policy": True}, ("app",)),
        (("root",), {"policies": ["root", "app"]}, ("root",)),
        (("app", "default"), {}, ("app", "default")),
        (("app", "default"), {"policies": ["app"]}, ("app", "default")),
        (("app", "default"), {"policies": ["default"]}, ("default",)),
        (("app", "default"), {"no_default_policy": True}, ("app",)),
        (("app",), {"policies": ["app"]}, ("app",)),
        (("app",), {}, ("app",)),
        (("root",), {"policies": []}, ("root",)),
        (("root",), {"policies": [""]}, ("default",)),
        (("root",), {"policies": [" ", ""]}, ("default",)),
        (("root",), {"policies": ""}, ("default",)),
        (("root",), {"policies": ","}, ("default",)),
    ],
)
def test_policies(make_token: MakeToken, maker: tuple[str, ...], asked: dict[str, object], got: tuple[str, ...]) -> None:
    """A subset of the maker's, its own where none are asked for, and `default` where the maker could give it.

    Names that turn out empty, as of a script's unset variable, ask for no rights, and never for all of the maker's.
    """
    assert grants.policies_for(order(**asked), make_token(policies=maker)) == got


@pytest.mark.parametrize("asked", [["root"], ["other"], ["app", "other"], ["default", "root"]])
def test_policies_beyond_the_makers_are_refused(make_token: MakeToken, asked: list[str]) -> None:
    """Nobody hands on what they don't have."""
    with pytest.raises(InvalidRequest, match=r"^child policies must be subset of parent$"):
        grants.policies_for(order(policies=asked), make_token(policies=("app", "default")))


@given(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from(["a", "b", "c", "root", "default"])), st.booleans())
def test_rights_never_grow(held: set[str], asked: set[str], without_default: bool) -> None:  # noqa: FBT001 - drawn
    """Whatever is asked of a maker without root, the child has no policy that the maker lacks."""
    facts = TokenFacts(accessor=Accessor(""), policies=tuple(held), display_name="", path="")
    maker = Token(number=TokenNumber(1), parent=NO_TOKEN, expires_ms=None, uses_left=None, digest=b"", facts=facts)
    try:
        got = grants.policies_for(order(policies=sorted(asked), no_default_policy=without_default), maker)
    except InvalidRequest:
        return
    assert set(got) <= held


@pytest.mark.parametrize(
    ("asked", "ttl", "explicit", "period", "warned"),
    [
        ({}, 3_600, 0, 0, ""),
        ({"ttl": "2h"}, 7_200, 0, 0, ""),
        ({"lease": 60}, 60, 0, 0, ""),
        ({"ttl": "20h"}, 36_000, 0, 0, 'TTL of "20h" exceeded the effective max_ttl of "10h"; TTL value is capped accordingly'),
        ({"explicit_max_ttl": 600}, 600, 600, 0, ""),
        ({"explicit_max_ttl": "99h"}, 3_600, 36_000, 0, 'Explicit max TTL of "99h"'),
        ({"ttl": 700, "explicit_max_ttl": 600}, 600, 600, 0, 'TTL of "11m40s"'),
        ({"period": 120}, 120, 0, 120, ""),
        (
            {"period": 120, "explicit_max_ttl": 60},
            60,
            60,
            120,
            'period of "2m" exceeded the effective max_ttl of "1m"; period value',
        ),
        ({"period": "20h"}, 36_000, 0, 36_000, 'period of "20h"'),
    ],
)
def test_life(
    make_token: MakeToken,
    asked: dict[str, object],
    ttl: int,
    explicit: int,
    period: int,
    warned: str,
) -> None:
    """Period, else what was asked for, else the default; capped, with a warning where more was asked for."""
    life = grants.life_for(order(**asked), ("app",), make_token(), SETTINGS)
    assert (life.ttl_s, life.explicit_max_s, life.period_s) == (ttl, explicit, period)
    assert [warning for warning in life.warnings if warned and warned in warning] or (not warned and not life.warnings)


def test_only_an_endless_root_makes_endless_roots(make_token: MakeToken) -> None:
    """An expiring root token can't outlive itself through a child."""
    assert grants.life_for(order(), ("root",), make_token(), SETTINGS).ttl_s is None
    assert grants.life_for(order(ttl=60), ("root",), make_token(), SETTINGS).ttl_s == 60
    with pytest.raises(InvalidRequest, match="expiring root tokens"):
        grants.life_for(order(), ("root",), make_token(expires_ms=1), SETTINGS)


@pytest.mark.parametrize(
    ("facts", "increment", "age_ms", "ttl", "warned"),
    [
        ({"creation_ttl_s": 600}, 0, 1_000, 600, False),
        ({"creation_ttl_s": 600}, 60, 1_000, 60, False),
        ({"creation_ttl_s": 600}, 99_999, 0, 36_000, True),
        ({"creation_ttl_s": 600}, 0, 35_900_001, 99, False),
        ({"creation_ttl_s": 600, "explicit_max_ttl_s": 900}, 0, 400_500, 499, False),
        ({"creation_ttl_s": 120, "period_s": 120}, 5, 100_000_000, 120, False),
        ({"creation_ttl_s": 120, "period_s": 120, "explicit_max_ttl_s": 200}, 0, 150_000, 50, True),
    ],
)
def test_renewed_life(
    make_token: MakeToken, facts: dict[str, int], increment: int, age_ms: int, ttl: int, *, warned: bool
) -> None:
    """Counted from now, never past the maximum of its age; a period starts anew."""
    life = grants.renewed_life(make_token(expires_ms=1, **facts), increment, age_ms, SETTINGS)
    assert life.ttl_s == ttl
    assert bool(life.warnings) is warned


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"expires_ms": None}, "lease is not renewable"),
        ({"expires_ms": 1, "renewable": False}, "lease is not renewable"),
        ({"expires_ms": 1, "creation_ttl_s": 60, "explicit_max_ttl_s": 60}, "past the max TTL, cannot renew"),
    ],
)
def test_what_can_not_be_renewed(make_token: MakeToken, fields: dict[str, object], text: str) -> None:
    """Said in Vault's words."""
    with pytest.raises(InvalidRequest, match=f"^{text}$"):
        grants.renewed_life(make_token(**fields), 0, 60_000, SETTINGS)


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**5), st.integers(1, 10**5))
def test_no_renewal_passes_the_maximum(increment: int, age_ms: int, explicit: int, ttl: int) -> None:
    """A token without a period never lives past its maximum, counted from its making."""
    facts = TokenFacts(
        accessor=Accessor(""), policies=(), display_name="", path="", creation_ttl_s=ttl, explicit_max_ttl_s=explicit
    )
    token = Token(number=TokenNumber(1), parent=NO_TOKEN, expires_ms=1, uses_left=None, digest=b"", facts=facts)
    try:
        life = grants.renewed_life(token, increment, age_ms, SETTINGS)
    except InvalidRequest:
        return
    most = min(SETTINGS.max_ttl, explicit or SETTINGS.max_ttl)
    assert age_ms + (life.ttl_s or 0) * 1_000 <= most * 1_000


@pytest.mark.parametrize("field", ["no_parent", "period"])
def test_roots_privileges_are_roots(make_token: MakeToken, field: str) -> None:
    """Orphans and periodic tokens are made by root alone."""
    grants.check_maker(order(**{field: 1}), make_token())
    with pytest.raises(InvalidRequest, match=r"^root or sudo privileges required"):
        grants.check_maker(order(**{field: 1}), make_token(policies=("app",)))


def test_a_use_limited_token_has_no_children(make_token: MakeToken) -> None:
    """Not even of root."""
    with pytest.raises(InvalidRequest, match=r"^restricted use token cannot generate child tokens$"):
        grants.check_maker(order(), make_token(uses_left=5))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "token"),
        ({"display_name": "x"}, "token-x"),
        ({"display_name": "a b'c"}, "token-a-b-c"),
        ({"display_name": "é"}, "token"),
    ],
)
def test_display_names(asked: dict[str, object], name: str) -> None:
    """They end up in user names, so only letters, digits and hyphens stay."""
    assert grants.display_name(order(**asked)) == name


def test_policies_that_do_not_exist_are_named() -> None:
    """As a warning, since they may come to exist."""
    assert grants.policy_warnings(["app", "default"]) == ['Policy "app" does not exist']
