"""The tree of a template, and how it becomes text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from broker.engines.template.functions import Function, Value, kind_of, shown, truth
from broker.engines.template.lexer import mistake
from broker.engines.template.texts import MOST_CHARS
from broker.engines.template.traced import Text, join


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that was written in the template."""

    value: Value


@dataclass(frozen=True, slots=True)
class Field:
    """`.DisplayName` or `.RoleName`."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments, whose number was checked; `at` is the place of its name."""

    function: Function
    arguments: tuple[Expression, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Choice:
    """`{{if}}`: one of two texts."""

    condition: Expression
    then: Nodes
    otherwise: Nodes


Expression: TypeAlias = Constant | Field | Call
Node: TypeAlias = Expression | Choice
Nodes: TypeAlias = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a template is filled in with."""

    display_name: Text
    role: Text
    now_ms: int


def write(nodes: Iterable[Node], scene: Scene) -> Text:
    """The text that the template yields. Raises `InvalidRequest` with the place of the function that failed."""
    return join([_written(node, scene) for node in nodes])


def variants(nodes: Nodes, most: int) -> list[Nodes]:
    """Every way through the conditions, as templates without any. Raises `InvalidRequest` for more than `most`."""
    ways: list[Nodes] = [()]
    for node in nodes:
        ends: Sequence[Nodes] = [(node,)]
        if isinstance(node, Choice):
            ends = variants(node.then, most) + variants(node.otherwise, most)
        if len(ways) * len(ends) > most:
            raise mistake(1, f"the conditions have over {most} outcomes; use fewer")
        ways = [way + end for way in ways for end in ends]
    return ways


def _written(node: Node, scene: Scene) -> Text:
    if isinstance(node, Choice):
        return write(node.then if truth(_value(node.condition, scene)) else node.otherwise, scene)
    return shown(_value(node, scene))


def _value(node: Expression, scene: Scene) -> Value:
    if isinstance(node, Constant):
        return node.value
    if isinstance(node, Field):
        return scene.display_name if node.name == ".DisplayName" else scene.role
    return _called(node, [_value(argument, scene) for argument in node.arguments], scene.now_ms)


def _called(call: Call, arguments: list[Value], now_ms: int) -> Value:
    for takes, argument in zip(call.function.takes, arguments, strict=False):
        if takes is not object and type(argument) is not takes:
            wanted = "a text" if takes is Text else "a number"
            raise mistake(call.at, f"{call.function.name} takes {wanted} here, not {kind_of(argument)}")
    try:
        value = call.function.run(now_ms, *arguments)
    except ValueError as wrong:
        raise mistake(call.at, str(wrong)) from None
    if isinstance(value, Text) and len(value.chars) > MOST_CHARS:
        raise mistake(call.at, f"{call.function.name} makes the text too long")
    return value
