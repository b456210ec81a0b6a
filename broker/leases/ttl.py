"""How long a lease lives: asked for, default, maximum, and the end of its token. Pure, in whole seconds.

The order is Vault's (reference of its lease system: increment, then the role's default, then the system's; capped by what is left of
the maximum), with one cap more: a lease never outlives the token that asked for it, and the answer says so. What comes out may
be shortened by chance, so that leases made together do not end together.
"""

from __future__ import annotations

from msgspec import Struct

from broker.duration import format_seconds


class Bounds(Struct, frozen=True, kw_only=True):
    """What limits a lease. `token_left_s` None: the token never ends."""

    default_s: int
    max_s: int
    age_s: int = 0
    """How long the lease has lived already."""
    token_left_s: int | None = None


class Ttl(Struct, frozen=True):
    """A resolved time to live. `capped_by` is empty, `max_ttl`, `token` or `ttl_jitter`."""

    seconds: int
    capped_by: str = ""
    warnings: tuple[str, ...] = ()


def resolve(increment_s: int, bounds: Bounds) -> Ttl:
    """The time to live from now on; 0 seconds when nothing is left.

    An `increment_s` of 0 or less asks for the default, which may itself be over the maximum, since the two come from different places
    (role, daemon).
    """
    wanted = increment_s if increment_s > 0 else bounds.default_s
    left = max(0, bounds.max_s - bounds.age_s)
    ttl, capped_by, warnings = wanted, "", []
    if ttl > left:
        warnings.append(
            f'TTL of "{format_seconds(wanted)}" exceeded the effective max_ttl of "{format_seconds(left)}"; '
            "TTL value is capped accordingly"
        )
        ttl, capped_by = left, "max_ttl"
    if bounds.token_left_s is not None and ttl > bounds.token_left_s:
        token_left = max(0, bounds.token_left_s)
        warnings.append(
            f'TTL of "{format_seconds(ttl)}" exceeded the remaining life of the token of "{format_seconds(token_left)}"; '
            "the lease ends with its token unless both are renewed"
        )
        ttl, capped_by = token_left, "token"
    return Ttl(ttl, capped_by, tuple(warnings))


def jittered(ttl: Ttl, percent: int, chance: float, *, left_s: int = 0) -> Ttl:
    """`ttl` shortened by up to `percent` (0 to 50) of itself, in whole seconds: not at all where `chance` is 0, most where it is 1.

    What had a second has one still. A renewal that asks for no less than the `left_s` that the lease has anyway takes nothing of them.
    `capped_by` becomes `ttl_jitter` unless something else capped it before.
    """
    most_s = ttl.seconds * percent // 100
    least_s = left_s if left_s <= ttl.seconds else 0
    seconds = max(ttl.seconds - min(most_s, int(chance * (most_s + 1))), least_s)
    return ttl if seconds == ttl.seconds else Ttl(seconds, ttl.capped_by or "ttl_jitter", ttl.warnings)
