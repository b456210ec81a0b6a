"""From the text of a template to its tree.

template  = { text | "{{" pipeline "}}" | "{{if" pipeline "}}" template otherwise }
otherwise = [ "{{else}}" template ] "{{end}}" | "{{else if" pipeline "}}" template otherwise
pipeline  = command { "|" command }          a command's value is the last argument of the next one
command   = function { operand } | operand
operand   = string | number | true | false | .DisplayName | .RoleName | function | "(" pipeline ")"
"""

from __future__ import annotations

from broker.engines.template.functions import FUNCTIONS
from broker.engines.template.lexer import Kind, Token, mistake, tokens
from broker.engines.template.traced import fixed
from broker.engines.template.tree import Call, Choice, Constant, Expression, Field, Node, Nodes

_FIELDS = (".DisplayName", ".RoleName")
_UNSUPPORTED = frozenset({"block", "break", "continue", "define", "nil", "range", "template", "with"})
_DEEPEST = 32
_MOST_DIGITS = 9


def parse(source: str) -> Nodes:
    """The tree of a template. Raises `InvalidRequest` with the place of what can't be used."""
    return _Parser(source).whole()


class _Parser:
    """Reads the tokens once, from left to right, one ahead."""

    def __init__(self, source: str) -> None:
        self._tokens = tokens(source)
        self._next = next(self._tokens)
        self._depth = 0

    def whole(self) -> Nodes:
        """The template up to its end."""
        nodes, stop = self._nodes()
        if stop.kind != "end of template":
            raise mistake(stop.at, f"{{{{{stop.value}}}}} without its {{{{if}}}}")
        return nodes

    def _take(self, *kinds: Kind) -> Token:
        token = self._next
        if kinds and token.kind not in kinds:
            raise mistake(token.at, f"{_named(token)} where {' or '.join(kinds)} is expected")
        if token.kind != "end of template":
            self._next = next(self._tokens)
        return token

    def _nodes(self) -> tuple[Nodes, Token]:
        """All up to `{{else`, `{{end` or the end, and that word, taken."""
        nodes: list[Node] = []
        while True:
            token = self._take("text", "begin", "end of template")
            if token.kind == "end of template":
                return tuple(nodes), token
            if token.kind == "text":
                nodes += [Constant(fixed(token.value))] if token.value else []
            elif self._next.value in ("else", "end") and self._next.kind == "word":
                return tuple(nodes), self._take()
            elif self._next.value == "if" and self._next.kind == "word":
                nodes.append(self._choice(self._take()))
            else:
                nodes.append(self._pipeline("finish"))

    def _choice(self, opened: Token) -> Choice:
        """What follows the word `if`, up to the closing of its `{{end}}`."""
        self._deeper(opened)
        condition = self._pipeline("finish")
        then, stop = self._nodes()
        otherwise: Nodes = ()
        if stop.value == "else" and self._next.kind == "word" and self._next.value == "if":
            otherwise = (self._choice(self._take()),)
        elif stop.value == "else":
            self._take("finish")
            otherwise, stop = self._nodes()
            self._close(opened, stop)
        else:
            self._close(opened, stop)
        self._depth -= 1
        return Choice(condition, then, otherwise)

    def _close(self, opened: Token, stop: Token) -> None:
        if stop.value != "end":
            raise mistake(opened.at, "{{if}} without its {{end}}")
        self._take("finish")

    def _pipeline(self, closing: Kind) -> Expression:
        """Commands joined by `|`, up to and with `closing`."""
        value = self._command(None)
        while self._next.kind == "|":
            self._take()
            value = self._command(value)
        self._take("|", closing)
        return value

    def _command(self, piped: Expression | None) -> Expression:
        head = self._take("string", "number", "field", "word", "(")
        if head.kind == "word" and head.value not in ("true", "false"):
            operands = []
            while self._next.kind not in ("|", ")", "finish", "end of template"):
                operands.append(self._operand(self._take("string", "number", "field", "word", "(")))
            return _call(head, operands if piped is None else [*operands, piped])
        if piped is not None:
            raise mistake(head.at, f"{_named(head)} is no function, so nothing can be piped into it")
        return self._operand(head)

    def _operand(self, token: Token) -> Expression:
        if token.kind == "(":
            self._deeper(token)
            inner = self._pipeline(")")
            self._depth -= 1
            return inner
        if token.kind == "field":
            if token.value not in _FIELDS:
                raise mistake(token.at, f"there is no {token.value}; there are .DisplayName and .RoleName")
            return Field(token.value)
        if token.kind == "number":
            return Constant(_number(token))
        if token.kind == "string":
            return Constant(fixed(token.value))
        return Constant(token.value == "true") if token.value in ("true", "false") else _call(token, [])

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise mistake(token.at, f"nested deeper than {_DEEPEST} levels")


def _call(name: Token, arguments: list[Expression]) -> Call:
    function = FUNCTIONS.get(name.value)
    if function is None:
        what = "is not supported" if name.value in _UNSUPPORTED else "is no function"
        raise mistake(name.at, f"{name.value} {what}; there are {', '.join(sorted(FUNCTIONS))}")
    least = len(function.takes)
    if len(arguments) < least or (len(arguments) > least and not function.takes_more):
        wanted = f"{least} or more" if function.takes_more else str(least)
        raise mistake(name.at, f"{name.value} takes {wanted} arguments, not {len(arguments)}")
    return Call(function, tuple(arguments), name.at)


def _number(token: Token) -> int:
    if len(token.value) > _MOST_DIGITS:
        raise mistake(token.at, "the number is too large")
    return int(token.value)


def _named(token: Token) -> str:
    return token.kind if token.kind in ("end of template", "text") else repr(token.value)
