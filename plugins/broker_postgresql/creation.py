"""What is sent to make a user: the role's own statements, or ours, and what is set in any case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.engines.protocol import NewUser
from broker.engines.statements import render
from broker.errors import BrokerError, InstructionsFailed
from broker_postgresql.orders import Order
from broker_postgresql.quoting import identifier, identifiers, literal, moment
from broker_postgresql.terms import RoleOptions, options_of

CAN_LOGIN = "LOGIN"
NO_LOGIN = "NOLOGIN"
_LISTS = frozenset({"search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"})
"""Settings whose value is a list of names (GUC_LIST_QUOTE): one quoted text would be taken for one name."""


def creation(order: NewUser, login: str, until_ms: int, expires: str, password: str) -> Order:
    """The order that makes a user with or without login, which the server ends at `until_ms` by its clock.

    `expires` is what the statements see as {{expiration}}, `password` the verifier or the password itself.
    Raises `InstructionsFailed` where there is nothing to run, or the statements can't be filled in.
    """
    user, terms = order.user, order.user.terms
    options = options_of(terms)
    if not terms.creation and not options.grant_roles:
        raise InstructionsFailed("empty creation statements: the role has neither creation_statements nor grant_roles")
    statements = filled(terms.creation, name=user.name, username=user.name, password=password, expiration=expires)
    how = f"{login} {_limit(options)}VALID UNTIL {moment(until_ms)}"
    ours = _complete(user.name, how, options) if statements else _made(user.name, how, options, password)
    comment = f"COMMENT ON ROLE {identifier(user.name)} IS {literal(user.marker)}"
    return Order(
        name=user.name,
        statements=statements,
        ours="; ".join([*ours, comment, *_settings(user.name, options)]),
        secret=password,
    )


def filled(statements: Sequence[str], **variables: str) -> str:
    """The statements with their variables filled in, as one text; a comment at the end of one does not reach the next."""
    try:
        return "\n;\n".join(render(statement, **variables) for statement in statements)
    except BrokerError as error:
        raise InstructionsFailed(str(error)) from None


def _made(name: str, how: str, options: RoleOptions, password: str) -> Iterator[str]:
    """What makes the whole user, in one statement."""
    yield f"CREATE ROLE {identifier(name)} PASSWORD {literal(password)} {how} IN ROLE {identifiers(options.grant_roles)}"


def _complete(name: str, how: str, options: RoleOptions) -> Iterator[str]:
    """What a user that the role's statements made still lacks; it undoes what they say of login and expiry."""
    if options.grant_roles:
        yield f"GRANT {identifiers(options.grant_roles)} TO {identifier(name)}"
    yield f"ALTER ROLE {identifier(name)} {how}"


def _settings(name: str, options: RoleOptions) -> Iterator[str]:
    for setting, value in options.settings.items():
        yield f"ALTER ROLE {identifier(name)} SET {setting} = {_value(setting, value)}"


def _value(setting: str, value: object) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if setting.lower() not in _LISTS:
        return literal(text)
    return ", ".join(literal(part.strip().strip('"')) for part in text.split(","))


def _limit(options: RoleOptions) -> str:
    return "" if options.connection_limit is None else f"CONNECTION LIMIT {options.connection_limit} "
