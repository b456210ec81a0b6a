"""What a new or renewed token gets: policies and time to live. Pure; Vault's rules, times in whole seconds.

Every refusal is an `InvalidRequest` in Vault's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.api.auth import TokenCreate
from broker.duration import format_seconds
from broker.errors import InvalidRequest
from broker.identity.policies import BUILT_IN, DEFAULT, ROOT
from broker.identity.settings import TokenSettings
from broker.model import Token

_UNSAFE = re.compile(r"[^A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How long a token lives. `ttl_s` None: for ever (root tokens of a root token)."""

    ttl_s: int | None
    explicit_max_s: int = 0
    period_s: int = 0
    warnings: tuple[str, ...] = ()


def check_maker(order: TokenCreate, maker: Token) -> None:
    """Refuses what `maker` may not ask for: children of use-limited tokens, and root's rights from others."""
    if maker.uses_left is not None:
        raise InvalidRequest("restricted use token cannot generate child tokens")
    if ROOT in maker.facts.policies:
        return
    if order.no_parent:
        raise InvalidRequest("root or sudo privileges required to create orphan token")
    if order.period:
        raise InvalidRequest("root or sudo privileges required to create periodic token")


def policies_for(order: TokenCreate, maker: Token) -> tuple[str, ...]:
    """The policies of a new token, sorted: those asked for (else the maker's), and `default` unless it was declined."""
    held = set(maker.facts.policies)
    wanted = {name.lower() for name in order.policies} or held
    if ROOT in wanted:
        if ROOT not in held:
            raise InvalidRequest("child policies must be subset of parent")
        return (ROOT,)
    if ROOT not in held and not wanted <= held:
        raise InvalidRequest("child policies must be subset of parent")
    if order.no_default_policy:
        wanted = wanted - {DEFAULT}
    elif ROOT in held or DEFAULT in held:
        wanted = wanted | {DEFAULT}
    return tuple(sorted(wanted))


def policy_warnings(policies: Sequence[str]) -> list[str]:
    """A warning for each policy that does not exist (yet)."""
    return [f'Policy "{name}" does not exist' for name in policies if name not in BUILT_IN]


def life_for(order: TokenCreate, policies: Sequence[str], maker: Token, settings: TokenSettings) -> Life:
    """How long a new token lives. Raises `InvalidRequest` where an expiring root token asks for one that never ends."""
    asked = order.ttl or order.lease
    if ROOT in policies and not (asked or order.period or order.explicit_max_ttl):
        if maker.expires_ms is not None:
            raise InvalidRequest("expiring root tokens cannot create non-expiring root tokens")
        return Life(ttl_s=None)
    warnings = []
    explicit = min(order.explicit_max_ttl, settings.max_ttl)
    if explicit < order.explicit_max_ttl:
        warnings.append(
            f'Explicit max TTL of "{format_seconds(order.explicit_max_ttl)}" is over the allowed value; it is being capped'
        )
    limit = explicit or settings.max_ttl
    period = min(order.period, settings.max_ttl)
    wanted = order.period or asked or settings.default_ttl
    warnings += _capped(wanted, limit, "period" if order.period else "TTL") if asked or order.period else []
    return Life(ttl_s=min(wanted, limit), explicit_max_s=explicit, period_s=period, warnings=tuple(warnings))


def renewed_life(token: Token, increment_s: int, now_ms: int, settings: TokenSettings) -> Life:
    """How long a renewed token lives from now on."""
    facts = token.facts
    if not facts.renewable or token.expires_ms is None:
        raise InvalidRequest("lease is not renewable")
    wanted = facts.period_s or increment_s or facts.creation_ttl_s or settings.default_ttl
    limits = [] if facts.period_s else [settings.max_ttl]
    limits += [facts.explicit_max_ttl_s] if facts.explicit_max_ttl_s else []
    age_s = -(-(now_ms - facts.created_ms) // 1_000)  # rounded up, so that what is left is rounded down
    left = min(limits, default=wanted + age_s) - age_s
    if left <= 0:
        raise InvalidRequest("past the max TTL, cannot renew")
    warnings = _capped(wanted, left, "period" if facts.period_s else "TTL") if increment_s or facts.period_s else []
    return Life(ttl_s=min(wanted, left), warnings=tuple(warnings))


def display_name(order: TokenCreate) -> str:
    """`token`, or `token-` and the name asked for, reduced to letters, digits and hyphens."""
    name = _UNSAFE.sub("-", order.display_name).strip("-")
    return "token" if name in ("", "token") else f"token-{name}"


def _capped(wanted_s: int, limit_s: int, what: str) -> list[str]:
    if wanted_s <= limit_s:
        return []
    wanted, limit = format_seconds(wanted_s), format_seconds(limit_s)
    return [f'{what} of "{wanted}" exceeded the effective max_ttl of "{limit}"; {what} value is capped accordingly']
