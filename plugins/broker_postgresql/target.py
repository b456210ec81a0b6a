"""Where a connection leads: libpq's two ways of writing it, a URL or `key=value` pairs, with Vault's `{{username}}` in it.

PostgreSQL manual 34.1.1 "Connection Strings". Several hosts are allowed. What is not understood is named, not guessed at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote

from broker.errors import InvalidRequest
from broker.secret import Secret

_SCHEMES = ("postgresql://", "postgres://")
_DEFAULT_PORT = 5432
_MOST_HOSTS = 16
_QUERY_WORD = re.compile(r"([?&])([^=&#]*)=([^&#]*)")
_PAIR = re.compile(r"\s*([A-Za-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.DOTALL)
_URL = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)(?P<authority>[^/?#]*)(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^#]*))?(?:#.*)?", re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_USER = "{{username}}"
_PASSWORD = "{{password}}"
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SSL_MODES: tuple[SslMode, ...] = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_USED = frozenset({
    "host", "hostaddr", "port", "dbname", "user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout",
})  # fmt: skip
_OURS = frozenset({"application_name", "timezone", "target_session_attrs", "client_encoding", "fallback_application_name"})
"""Accepted without a word: we set them ourselves, or always do what they ask for."""
_MASKED = "xxxxx"
_FIELD = "connection_url"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A connection string, read."""

    hosts: tuple[tuple[str, int], ...]
    """Host names or addresses, or directories of Unix sockets, with their ports; tried in this order."""
    database: str
    user: str
    password: Secret
    sslmode: SslMode = "prefer"
    sslrootcert: str = ""
    sslcert: str = ""
    sslkey: str = ""
    connect_timeout_s: int = 0
    """For one host; 0 where nothing was said."""
    unused: tuple[str, ...] = field(default=())
    """Names of parameters that mean nothing here."""


def off_this_machine(host: str) -> bool:
    """Whether the way to a host may lead over a network: neither a directory of Unix sockets, nor `localhost`, nor a loopback address."""
    if host.startswith("/") or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def read_target(url: str, username: str, password: Secret, *, escape: bool) -> Target:
    """The target that `url` means once the login is filled in; `escape` quotes what goes into a URL.

    Raises `InvalidRequest` that names what is wrong and repeats no value.
    """
    words = _from_url(url, username, password, escape=escape) if _is_url(url) else _from_pairs(url, username, password)
    return Target(
        hosts=_hosts(words),
        database=words.get("dbname") or words.get("user") or username or "postgres",
        user=words.get("user") or username,
        password=Secret(words["password"]) if words.get("password") else password,
        sslmode=_sslmode(words),
        sslrootcert=words.get("sslrootcert", ""),
        sslcert=words.get("sslcert", ""),
        sslkey=words.get("sslkey", ""),
        connect_timeout_s=_number(words.get("connect_timeout", "0"), "connect_timeout", 0, 600),
        unused=tuple(sorted(words.keys() - _USED - _OURS)),
    )


def holds_password(url: str) -> bool:
    """Whether a password stands in the connection string itself."""
    try:
        words = _split_url(url) if _is_url(url) else _pairs(url)
    except InvalidRequest:
        return False
    return any(written and _PASSWORD not in written for name, written in words.items() if _is_secret(name))


def masked(url: str) -> str:
    """The connection string as it may be shown: `xxxxx` in place of a password."""
    if not holds_password(url):
        return url
    if not _is_url(url):
        return _PAIR.sub(lambda pair: f" {pair[1]}={_MASKED}" if _is_secret(pair[1]) else pair[0], url).strip()
    parts = _parts(url)
    login, _, _ = parts["authority"].rpartition("@")
    user, colon, _ = login.partition(":")
    rest = url[parts.start("authority") + len(login) :]
    shown = f"{parts['scheme']}{user}{colon}{_MASKED if colon else ''}{rest}"
    return _QUERY_WORD.sub(lambda word: f"{word[1]}{word[2]}={_MASKED}" if _is_secret(unquote(word[2])) else word[0], shown)


def read_hosts(written: object, field: str) -> tuple[tuple[str, int], ...]:
    """Servers written as `host:port`, in a list or with commas between; the port may be left out. Raises `InvalidRequest`."""
    parts = written.split(",") if isinstance(written, str) else written
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts) or len(parts) > _MOST_HOSTS:
        raise InvalidRequest(f"{field}: a list of host:port is needed, of at most {_MOST_HOSTS}")
    named = [_host_and_port(part.strip(), field) for part in parts if part.strip()]
    if not all(host for host, _ in named):
        raise InvalidRequest(f"{field}: a host is missing; write host:port")
    _refuse_odd([host for host, _ in named], field)
    return tuple((host, _number(port or str(_DEFAULT_PORT), "port", 1, 65_535, field)) for host, port in named)


def _is_secret(name: str) -> bool:
    """Whether a word of a connection string is one that nobody may read back: `password`, `sslpassword`, `passfile` ..."""
    return "pass" in name.lower()


def _is_url(url: str) -> bool:
    return url.startswith(_SCHEMES)


def _from_url(url: str, username: str, password: Secret, *, escape: bool) -> dict[str, str]:
    user, secret = username, password.reveal()
    if escape:
        user, secret = quote(user, safe=""), quote(secret, safe="")
    parts = _split_url(url.replace(_USER, user).replace(_PASSWORD, secret))
    return {name: value for name, value in parts.items() if value}


def _split_url(url: str) -> dict[str, str]:
    parts = _parts(url)
    login, _, hosts = parts["authority"].rpartition("@")
    user, _, password = login.partition(":")
    words = {"user": unquote(user), "password": unquote(password), "dbname": unquote(parts["path"] or "")}
    names, ports = zip(*(_host_and_port(part) for part in hosts.split(",")), strict=True)
    words |= {"host": ",".join(names), "port": ",".join(ports)}
    return words | dict(parse_qsl(parts["query"] or "", keep_blank_values=True))


def _parts(url: str) -> re.Match[str]:
    parts = _URL.fullmatch(url)
    if parts is None:
        raise InvalidRequest(f"{_FIELD}: not readable as a URL (postgresql://user:password@host:5432/database)")
    return parts


def _host_and_port(part: str, field: str = _FIELD) -> tuple[str, str]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(?::(\d*))?", part, re.ASCII)
    if match is None:
        raise InvalidRequest(f"{field}: a host is not readable; write host:port, and IPv6 addresses in brackets")
    return unquote(match[1].strip("[]")), match[2] or ""


def _from_pairs(text: str, username: str, password: Secret) -> dict[str, str]:
    def escaped(value: str) -> str:
        return re.sub(r"([\\'\s])", r"\\\1", value)

    return _pairs(text.replace(_USER, escaped(username)).replace(_PASSWORD, escaped(password.reveal())))


def _pairs(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    place, end = 0, len(text.rstrip())
    while place < end:
        pair = _PAIR.match(text, place)
        if pair is None:
            raise InvalidRequest(f"{_FIELD}: neither a URL (postgresql://user:password@host:5432/database) nor key=value pairs")
        words[pair[1].lower()] = _ESCAPED.sub(r"\1", pair[2] if pair[2] is not None else pair[3])
        place = pair.end()
    return words


def _hosts(words: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    names = (words.get("hostaddr") or words.get("host") or "localhost").split(",")
    ports = (words.get("port") or "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names) or len(names) > _MOST_HOSTS:
        raise InvalidRequest(f"{_FIELD}: one port for all hosts or one for each is needed, and at most {_MOST_HOSTS} hosts")
    _refuse_odd(names, _FIELD)
    return tuple(
        (name or "localhost", _number(port or str(_DEFAULT_PORT), "port", 1, 65_535))
        for name, port in zip(names, ports, strict=True)
    )


def _refuse_odd(names: Sequence[str], field: str) -> None:
    """Names that no resolver takes: a part of a host's name is 1 to 63 bytes (RFC 1035, 2.3.4), and none has a NUL."""
    for name in names:
        try:
            name.encode("utf-8" if name.startswith("/") else "idna")
        except UnicodeError:
            odd = True
        else:
            odd = "\x00" in name
        if odd:
            raise InvalidRequest(f"{field}: a host's name has parts that are empty, too long or no text")


def _sslmode(words: Mapping[str, str]) -> SslMode:
    written = words.get("sslmode") or "prefer"
    mode = next((mode for mode in SSL_MODES if mode == written), None)
    if mode is None:
        raise InvalidRequest(f"{_FIELD}: sslmode is unknown; allowed are {', '.join(SSL_MODES)}")
    for name in ("sslrootcert", "sslcert", "sslkey"):
        if words.get(name) and not Path(words[name]).is_file():
            raise InvalidRequest(f"{_FIELD}: the file that {name} names is not there")
    return mode


def _number(text: str, name: str, least: int, most: int, field: str = _FIELD) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not least <= int(text) <= most:
        raise InvalidRequest(f"{field}: {name} must be a number from {least} to {most}")
    return int(text)
