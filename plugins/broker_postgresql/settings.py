"""The fields of a connection, Vault's and our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from broker.duration import parse_seconds
from broker.engines.usernames import UserNameTemplate
from broker.errors import InvalidRequest
from broker.model import Json
from broker.secret import Secret
from broker_postgresql.target import Target, holds_password, masked, off_this_machine, read_hosts, read_target

NAME_BYTES = 63
"""PostgreSQL cuts longer names (NAMEDATALEN - 1)."""
SECRET_FIELDS = frozenset({"password", "private_key"})
DEFAULT_TEMPLATE = "v-{{.DisplayName | truncate 8}}-{{.RoleName | truncate 8}}-{{random 20}}-{{unix_time}}"
_DEFAULT_OPEN = 4
PASSWORD_IN_URL = (
    "Password found in connection_url, use a templated url to enable root rotation and prevent read access to password"
    " information."
)
"""Vault's own words."""
OPEN_WAY = (
    "connection_url: without sslmode, as with prefer and allow, no certificate is checked, and with a server that offers no TLS all"
    " travels in clear; write sslmode=verify-full, with tls_ca, or sslmode=disable where something else protects the way"
)

LIST: Json = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string", "examples": ["a,b"]}]}
"""JSON Schema of a list that may be written with commas, too."""


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise InvalidRequest("password, private_key: not a text")
    return Secret(value)


def _text(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, str) and "\x00" in value:
        raise InvalidRequest("a connection's fields can't hold a NUL character")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Hidden = Annotated[
    Secret, BeforeValidator(_secret), WithJsonSchema({"type": "string", "format": "password", "writeOnly": True})
]
Servers = Annotated[
    tuple[tuple[str, int], ...],
    BeforeValidator(lambda value: read_hosts("" if value is None else value, "standbys")),
    WithJsonSchema(LIST),
]
Seconds = Annotated[
    int,
    BeforeValidator(lambda value: parse_seconds(value, field="max_connection_lifetime")),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["1h30m", "3600"]}]}),
]


class ConnectionSettings(BaseModel):
    """A connection as it was written. Fields that it does not know are kept elsewhere and answered with a warning."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, hide_input_in_errors=True)

    connection_url: Text = Field(
        "",
        max_length=8192,
        description="URL or key=value pairs, `{{username}}` and `{{password}}` in place of the login; several hosts are tried"
        " in turn. Its database is the home one: users are made there, statements run there. Required.",
    )
    username: Text = Field("", max_length=NAME_BYTES, description="The broker's own login.")
    password: Hidden = Field(default_factory=lambda: Secret(""), description="Its password; never shown again.")
    standbys: Servers = Field(
        (),
        description="Hot standbys of the server, `host:port` each, in a list or with commas between; same login, same TLS. A revocation"
        " ends sessions there too and is done only then. One that is the primary meanwhile is left out.",
    )
    max_open_connections: int = Field(
        0, ge=0, le=1000, description="The most connections to the server, all uses together; 0 takes 4."
    )
    max_idle_connections: int = Field(
        0,
        le=1000,
        description="The most that stay open unused, of each use (making users, turning them on, revoking); 0 keeps all,"
        " below 0 none.",
    )
    max_connection_lifetime: Seconds = Field(0, description="After how long a connection is made anew, in seconds; 0 never.")
    username_template: Text = Field("", description="Template of the users' names; empty takes Vault's.")
    password_authentication: Literal["", "password", "scram-sha-256"] = Field(
        "", description="What is sent as a new user's password: its verifier (`scram-sha-256`, the default) or the `password`."
    )
    scram_iterations: int = Field(
        4096, ge=1, le=1_000_000, description="Iterations of the verifier; some drivers refuse fewer than 4096."
    )
    disable_escaping: bool = Field(default=False, description="Whether the login goes into the URL as it is.")
    tls_ca: Text = Field("", description="PEM of the authorities that sign the server's certificate.")
    tls_certificate: Text = Field("", description="PEM of the broker's own certificate.")
    private_key: Hidden = Field(default_factory=lambda: Secret(""), description="PEM of its key; never shown again.")

    @property
    def open_connections(self) -> int:
        """How many connections there may be at once."""
        return self.max_open_connections or _DEFAULT_OPEN

    @property
    def idle_connections(self) -> int:
        """How many may wait unused."""
        return max(0, self.max_idle_connections or self.open_connections)

    @property
    def sends_verifier(self) -> bool:
        """Whether new users' passwords are sent as verifiers."""
        return self.password_authentication != "password"

    def target(self) -> Target:
        """Where the connection leads. Raises `InvalidRequest`."""
        return read_target(self.connection_url, self.username, self.password, escape=not self.disable_escaping)

    def names(self) -> UserNameTemplate:
        """The template of users' names. Raises `InvalidRequest`."""
        return UserNameTemplate(self.username_template or DEFAULT_TEMPLATE, NAME_BYTES)


def read_settings(config: Mapping[str, Json]) -> ConnectionSettings:
    """The fields of `config`, checked. Raises `InvalidRequest` that names the first wrong one and never repeats a value."""
    try:
        settings = ConnectionSettings.model_validate({name: value for name, value in config.items() if value is not None})
    except ValidationError as mistakes:
        raise InvalidRequest(first_mistake(mistakes)) from None
    if not settings.connection_url.strip():
        raise InvalidRequest("connection_url: required, e.g. postgresql://{{username}}:{{password}}@localhost:5432/postgres")
    if any(variable in text for variable in ("{{username}}", "{{password}}") for text in _login(settings)):
        raise InvalidRequest("username and/or password cannot contain the template variables")
    if bool(settings.tls_certificate) != bool(settings.private_key):
        raise InvalidRequest("tls_certificate, private_key: one is of no use without the other")
    settings.target()
    settings.names()
    return settings


def warnings_about(config: Mapping[str, Json]) -> Sequence[str]:
    """What is odd about a connection's fields, in sentences. Raises `InvalidRequest` as `read_settings` does."""
    settings = read_settings(config)
    unknown = sorted(config.keys() - ConnectionSettings.model_fields.keys())
    unused = settings.target().unused
    found = [f"{name}: not known to the PostgreSQL engine; kept, and of no effect" for name in unknown]
    found += [f"connection_url: the parameter {name} has no effect here" for name in unused]
    if holds_password(settings.connection_url):
        found.append(PASSWORD_IN_URL)
    if _way_is_open(settings):
        found.append(OPEN_WAY)
    return found


def shown(config: Mapping[str, Json]) -> dict[str, Json]:
    """The fields as they may be read back."""
    kept = {name: value for name, value in config.items() if name not in SECRET_FIELDS}
    url = kept.get("connection_url")
    if isinstance(url, str):
        kept["connection_url"] = masked(url)
    return kept


def described(model: type[BaseModel]) -> dict[str, Json]:
    """A model's fields as `Fields` wants them. Titles would only say their names again."""
    properties: dict[str, dict[str, Json]] = model.model_json_schema()["properties"]
    return {name: {key: value for key, value in field.items() if key != "title"} for name, field in properties.items()}


def first_mistake(mistakes: ValidationError) -> str:
    """The first mistake as `field: what`, without the value that was given."""
    first: Any = mistakes.errors(include_input=False, include_context=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _way_is_open(settings: ConnectionSettings) -> bool:
    target = settings.target()
    hosts = [host for host, _ in (*target.hosts, *settings.standbys)]
    # With one of these two fields TLS is insisted on, whatever the mode.
    insists = settings.tls_ca or settings.tls_certificate
    return target.sslmode in ("prefer", "allow") and not insists and any(map(off_this_machine, hosts))


def _login(settings: ConnectionSettings) -> tuple[str, str]:
    return settings.username, settings.password.reveal()
