"""Field types that read what Vault's clients really send: numbers as text, lists as one string, pairs as `k=v`.

The coercions are those of Vault's field schemas (DurationSecond, CommaStringSlice, StringSlice, Bool, Int, KVPairs).
Every mistake is an `InvalidRequest` that names the field and what is allowed, and never repeats the value: it may be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, WithJsonSchema, model_validator

from broker.duration import parse_seconds
from broker.errors import InvalidRequest

NAME_CHARS = 256
TEXT_CHARS = 65_536
LIST_ITEMS = 1_000
NESTING = 16
VALUES = 10_000
"""How many values a request may have in all: whatever is done with each of them is then done soon."""
_INT_LIMIT = 1 << 63
NAME = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_BOOLS = {
    word: truth
    for truth, words in ((True, "1 t T true TRUE True"), (False, "0 f F false FALSE False"))
    for word in words.split()
}
"""The texts of Go's `strconv.ParseBool`."""


def name(value: str, field: str) -> str:
    """`value` itself, if it is a name: letters, digits, `_`, inner `-` and `.` (Vault's GenericNameRegex), at most 256."""
    if len(value) > NAME_CHARS or not NAME.fullmatch(value):
        raise InvalidRequest(f"{field}: not a name; allowed are up to {NAME_CHARS} letters, digits, '_', and '-' or '.' inside")
    return value


def text(value: object, field: str) -> str:
    """Text, or a number or truth value as text. No NUL (no database takes one), no half surrogate pair, bounded."""
    if not isinstance(value, str):
        return _as_text(value, field)
    if len(value) > TEXT_CHARS:
        raise InvalidRequest(f"{field}: too long; allowed are {TEXT_CHARS} characters")
    if "\x00" in value or not _is_unicode(value):
        raise InvalidRequest(f"{field}: NUL and unpaired surrogates are not allowed")
    return value


def _as_text(value: object, field: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise InvalidRequest(f"{field}: not a text")


def short_text(value: object, field: str) -> str:
    """Text of at most 256 characters."""
    short = text(value, field)
    if len(short) > NAME_CHARS:
        raise InvalidRequest(f"{field}: too long; allowed are {NAME_CHARS} characters")
    return short


def boolean(value: object, field: str) -> bool:
    """True or false from a truth value, a number (0 is false) or one of Go's texts; an empty text is false."""
    if isinstance(value, bool | int):
        return bool(value)
    if isinstance(value, str) and (value in _BOOLS or not value):
        return _BOOLS.get(value, False)
    raise InvalidRequest(f"{field}: neither true nor false")


def integer(value: object, field: str) -> int:
    """A whole number from a number or decimal text; an empty text is 0. 64 bits at most."""
    number: object = value
    if isinstance(value, str):
        number = int(value or "0") if not value or _INTEGER.fullmatch(value) else None
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else None
    if isinstance(number, bool) or not isinstance(number, int) or not -_INT_LIMIT <= number < _INT_LIMIT:
        raise InvalidRequest(f"{field}: not a whole number")
    return number


def string_list(value: object, field: str) -> list[str]:
    """A list of texts; one text is one element, and empty ones are dropped."""
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) > LIST_ITEMS:
        raise InvalidRequest(f"{field}: too many; allowed are {LIST_ITEMS}")
    return [item for item in (text(element, field) for element in items) if item.strip()]


def comma_list(value: object, field: str) -> list[str]:
    """A list of texts, or one text split at commas; trimmed, and empty ones are dropped."""
    items: object = text(value, field).split(",") if not isinstance(value, list | tuple) else value
    return [item.strip() for item in string_list(items, field)]


def key_values(value: object, field: str) -> dict[str, str]:
    """An object of texts, or a list of `key=value`."""
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    else:
        split = [item.partition("=") for item in string_list(value, field)]
        if any(not equals for _, equals, _ in split):
            raise InvalidRequest(f"{field}: neither an object nor a list of key=value")
        pairs = [(key, item) for key, _, item in split]
    if len(pairs) > LIST_ITEMS:
        raise InvalidRequest(f"{field}: too many; allowed are {LIST_ITEMS}")
    return {text(key, field): text(item, field) for key, item in pairs}


def _named(info: ValidationInfo) -> str:
    return info.field_name or "value"


_TEXT = {"type": "string", "maxLength": TEXT_CHARS}
_TEXTS = {"type": "array", "items": _TEXT, "maxItems": LIST_ITEMS}

ShortText = Annotated[
    str,
    BeforeValidator(lambda value, info: short_text(value, _named(info))),
    WithJsonSchema({"type": "string", "maxLength": NAME_CHARS}),
]
Text = Annotated[str, BeforeValidator(lambda value, info: text(value, _named(info))), WithJsonSchema(_TEXT)]
LenientBool = Annotated[bool, BeforeValidator(lambda value, info: boolean(value, _named(info)))]
LenientInt = Annotated[int, BeforeValidator(lambda value, info: integer(value, _named(info)))]
DurationSeconds = Annotated[
    int,
    BeforeValidator(lambda value, info: parse_seconds(value, field=_named(info))),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["1h30m", "3600"]}]}),
]
StringList = Annotated[
    list[str],
    BeforeValidator(lambda value, info: string_list(value, _named(info))),
    WithJsonSchema({"anyOf": [_TEXTS, _TEXT]}),
]
CommaList = Annotated[
    list[str],
    BeforeValidator(lambda value, info: comma_list(value, _named(info))),
    WithJsonSchema({"anyOf": [_TEXTS, {**_TEXT, "examples": ["a,b"]}]}),
]
KeyValues = Annotated[
    dict[str, str],
    BeforeValidator(lambda value, info: key_values(value, _named(info))),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": _TEXT, "maxProperties": LIST_ITEMS},
                {**_TEXTS, "examples": [["k=v"]]},
            ]
        }
    ),
]
# The schemas say what may be sent, in the clearest of the ways that are understood: a number as text is taken too.


class Wire(BaseModel):
    """What every request is made of. Unknown fields are kept in `model_extra`; a null counts as absent.

    Where unknown fields mean something, a null takes one of them away.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    keeps_unknown: ClassVar[bool] = False
    """Whether unknown fields mean something to whoever takes the request; elsewhere the caller is warned of them."""

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise InvalidRequest("the request body is not a JSON object")
        for field, value in data.items():
            check_json(value, text(field, "a field's name")[:NAME_CHARS])
        return {field: value for field, value in data.items() if value is not None or cls._may_take_away(field)}

    @classmethod
    def _may_take_away(cls, field: str) -> bool:
        return cls.keeps_unknown and field not in cls.model_fields

    def unknown(self) -> list[str]:
        """Names of the fields that this request does not know, sorted."""
        return sorted(self.model_extra or ())

    def unknown_over(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that it does not know, over those of an earlier request; what is null is taken away."""
        return {field: value for field, value in {**before, **(self.model_extra or {})}.items() if value is not None}


def check_json(value: object, field: str, depth: int = 0) -> None:
    """Raises `InvalidRequest` for a JSON value that can't be kept: nested too deep, a NUL in a text, a number out of range."""
    if depth > NESTING:
        raise InvalidRequest(f"{field}: nested too deep; allowed are {NESTING} levels")
    if isinstance(value, str):
        text(value, field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{field}: not a finite number")
    elif isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise InvalidRequest(f"{field}: the number is beyond 64 bits")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            text(key, field)
            check_json(item, field, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, field, depth + 1)


def check_shape(data: Mapping[str, object]) -> None:
    """Raises `InvalidRequest` for JSON of more than `VALUES` values in all, or nested too deep. Looks at their number, not at them."""
    level: list[object] = [data]
    values = 0
    for _ in range(NESTING + 2):
        level = [member for value in level for member in _members(value)]
        values += len(level)
        if values > VALUES:
            raise InvalidRequest(f"the request has too many values; allowed are {VALUES}")
        if not level:
            return
    raise InvalidRequest(f"the request is nested too deep; allowed are {NESTING} levels")


def _members(value: object) -> Collection[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


Model = TypeVar("Model", bound=BaseModel)


def decode(model: type[Model], data: object) -> Model:
    """`data` as a request. Raises `InvalidRequest` that names the first wrong field and what is allowed there."""
    try:
        return model.model_validate(data)
    except ValidationError as mistakes:
        first = mistakes.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        # From None: the original would carry the input into a traceback.
        raise InvalidRequest(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
