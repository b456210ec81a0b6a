"""What a template may call: Vault's functions by their names, and Go's for formatting and conditions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from broker.engines.template import texts
from broker.engines.template.traced import Text, fixed, join

Value: TypeAlias = Text | int | bool

_VERB = re.compile(r"%(?:(?:\.(?P<precision>[0-9]{1,4}))?(?P<verb>[svd])|(?P<percent>%)|.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Function:
    """A function: its name, what it does, what its parameters take (`Text`, `int`, or `object` for anything)."""

    name: str
    run: Callable[..., Value]
    takes: tuple[type, ...]
    takes_more: bool = False
    """Whether further arguments of any kind may follow."""


def printf(_now_ms: int, form: Text, *values: Value) -> Text:
    """`printf form values`: Go's formatting with `%s`, `%v`, `%d`, `%%` and a precision, as in `%.8s`."""
    waiting = list(values)
    parts, place = [], 0
    for match in _VERB.finditer(form.chars):
        parts += [Text(form.chars[place : match.start()], form.marks[place : match.start()]), _formatted(match, waiting)]
        place = match.end()
    if waiting:
        raise ValueError(f"printf has {len(waiting)} values more than its format uses")
    return join((*parts, Text(form.chars[place:], form.marks[place:])))


def eq(_now_ms: int, first: Value, *others: Value) -> bool:
    """`eq a b c`: whether a equals any of the others."""
    return any(_plain(first) == _plain(other) for other in others)


def ne(_now_ms: int, first: Value, second: Value) -> bool:
    """`ne a b`: whether they differ."""
    return _plain(first) != _plain(second)


def both(_now_ms: int, *values: Value) -> Value:
    """`and a b`: the first empty one, else the last."""
    return _choose(values, lambda value: not truth(value))


def either(_now_ms: int, *values: Value) -> Value:
    """`or a b`: the first one that is not empty, else the last."""
    return _choose(values, truth)


def negation(_now_ms: int, value: Value) -> bool:
    """`not a`: whether it is empty, zero or false."""
    return not truth(value)


def truth(value: Value) -> bool:
    """Whether a condition holds: text that is not empty, a number that is not zero, true."""
    return bool(value.chars) if isinstance(value, Text) else bool(value)


def shown(value: Value) -> Text:
    """How a value stands in the output."""
    if isinstance(value, Text):
        return value
    return fixed(str(value).lower())


def kind_of(value: Value) -> str:
    """What a value is, for messages."""
    if isinstance(value, Text):
        return "a text"
    return "true or false" if isinstance(value, bool) else "a number"


def _function(name: str, run: Callable[..., Value], *takes: type) -> tuple[str, Function]:
    return name, Function(name, run, takes)


def _variadic(name: str, run: Callable[..., Value], *takes: type) -> tuple[str, Function]:
    return name, Function(name, run, takes, takes_more=True)


def _formatted(match: re.Match[str], waiting: list[Value]) -> Text:
    verb, precision = match["verb"], match["precision"]
    if match["percent"]:
        return fixed("%")
    if verb is None:
        raise ValueError(f"printf knows %s, %v, %d and %%, not {match[0]!r}")
    if not waiting:
        raise ValueError("printf has fewer values than its format uses")
    value = waiting.pop(0)
    if (verb == "s" and not isinstance(value, Text)) or (verb == "d" and type(value) is not int):
        raise ValueError(f"printf {match[0]} was given {kind_of(value)}")
    text = shown(value)
    return text if precision is None else text.first(int(precision))


def _choose(values: tuple[Value, ...], stop: Callable[[Value], bool]) -> Value:
    return next((value for value in values if stop(value)), values[-1])


def _plain(value: Value) -> str | int | bool:
    return value.chars if isinstance(value, Text) else value


FUNCTIONS: dict[str, Function] = dict(
    [
        _variadic("and", both, object),
        _variadic("eq", eq, object, object),
        _function("glob", texts.glob, Text, Text),
        _function("ne", ne, object, object),
        _function("not", negation, object),
        _variadic("or", either, object),
        _variadic("printf", printf, Text),
        _function("base64", texts.encode_base64, Text),
        _function("decode_base64", texts.decode_base64, Text),
        _function("decode_hex", texts.decode_hex, Text),
        _function("hex", texts.encode_hex, Text),
        _function("lowercase", texts.lowercase, Text),
        _function("random", texts.random, int),
        _function("replace", texts.replace, Text, Text, Text),
        _function("sha256", texts.sha256, Text),
        _function("timestamp", texts.timestamp, Text),
        _function("truncate", texts.truncate, int, Text),
        _function("truncate_sha256", texts.truncate_sha256, int, Text),
        _function("unix_time", texts.unix_time),
        _function("unix_time_millis", texts.unix_time_millis),
        _function("uppercase", texts.uppercase, Text),
        _function("uuid", texts.new_uuid),
    ]
)
