"""Durations as people and Vault's clients write them (Go's `time.ParseDuration` plus `d`)."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

from broker.errors import InvalidRequest

MAX_S = 100 * 365 * 86_400
"""A century. Longer spans are a mistake, and would overflow the 64-bit milliseconds of the store or the dates of a database."""

_ALLOWED = "allowed are seconds (3600) or a text such as 1h30m or 5d, up to 100 years"
_NEGATIVE = re.compile(r"\s*-.*\d")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WHOLE = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_PLAIN = re.compile(r"\d{1,12}", re.ASCII)


def parse_seconds(value: object, *, field: str) -> int:
    """Whole seconds from a number, a numeric string, or a text such as `1h30m` or `5d`; fractions are cut off.

    Raises `InvalidRequest` naming `field` for anything else, for negative spans and for spans over a century.
    """
    try:
        return _checked(value)
    except ValueError as mistake:
        raise InvalidRequest(f"{field}: {mistake}") from None


def _checked(value: object) -> int:
    seconds = _seconds(value)
    if (seconds is not None and seconds < 0) or (isinstance(value, str) and _NEGATIVE.match(value)):
        raise ValueError(f"negative; {_ALLOWED}")
    if seconds is None:
        raise ValueError(f"not a duration; {_ALLOWED}")
    if seconds > MAX_S:
        raise ValueError(f"too long; {_ALLOWED}")
    return seconds


ConfiguredSeconds = Annotated[int, BeforeValidator(_checked)]
"""A duration in the configuration. Its mistake is one of pydantic's, which names the key and lets other mistakes be named too."""


def not_below(seconds: int, least: str, info: ValidationInfo) -> int:
    """The setting itself, at least as great as the one named `least` before it. Raises `ValueError` otherwise."""
    at_least = info.data.get(least)
    if at_least is not None and seconds < at_least:
        raise ValueError(
            f"{format_seconds(seconds)} is less than {least} ({format_seconds(at_least)}); set that, too, or make this longer"
        )
    return seconds


def _seconds(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if not text:
        return 0
    if _PLAIN.fullmatch(text):
        return int(text)
    if not _WHOLE.fullmatch(text):
        return None
    return int(sum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text)) // 1_000)


def format_seconds(seconds: int) -> str:
    """`5400` as `1h30m`: hours, minutes and seconds without the zero ones, as Vault's warnings print them; `0s` for none."""
    hours, rest = divmod(seconds, 3_600)
    minutes, left = divmod(rest, 60)
    parts = [f"{amount}{unit}" for amount, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if amount]
    return "".join(parts) or "0s"
