"""Where and how the door listens, and its limits."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_LAST_PORT = 65_535
_PERMISSIONS = 0o777


class ServerSettings(BaseModel):
    """Section `[server]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    address: str = Field(
        "127.0.0.1:8200",
        description="Where to listen: `host:port` (an IPv6 host in brackets), or `unix:/path` for a Unix socket.",
    )
    tls_cert_file: Path | None = Field(
        None, strict=False, description="Certificate chain (PEM) to serve HTTPS (TLS 1.2 and up) with; unset: plain HTTP."
    )
    tls_key_file: Path | None = Field(
        None, strict=False, description="Private key (PEM) of the certificate; set exactly when that is."
    )
    allow_plain_http: bool = Field(
        default=False,
        description="Serve plain HTTP on an address that other machines reach. Passwords then cross the network in clear.",
    )
    socket_mode: int = Field(
        0o660,
        ge=0,
        le=_PERMISSIONS,
        description="Permissions of the Unix socket; whoever may write to it may speak to the broker.",
    )
    unauthenticated_metrics_access: bool = Field(
        default=False,
        description="Serve `sys/metrics` without a token too. Whoever reaches the address then reads names of roles and connections.",
    )
    max_body_bytes: int = Field(1_048_576, ge=1_024, le=33_554_432, description="The largest request body; past it 413.")
    max_header_bytes: int = Field(
        16_384, ge=1_024, le=1_048_576, description="The longest request line, and the longest header; past it 400."
    )
    max_in_flight: int = Field(
        1_024,
        ge=1,
        description="How many requests are worked on at once; past it 503 with Retry-After. Health checks are not counted.",
    )
    max_connections: int = Field(
        4_096, ge=1, description="How many connections are held open; past it new ones are closed at once."
    )
    request_timeout_s: float = Field(
        90, gt=0, le=3_600, description="How long one request may take; past it 503 with Retry-After."
    )
    body_timeout_s: float = Field(
        30, gt=0, le=600, description="How long a client may take to send a request body; past it 400."
    )
    keepalive_s: float = Field(
        75,
        gt=0,
        le=3_600,
        description="How long a connection may stay open without a request, from its start and between requests.",
    )
    drain_s: float = Field(
        20, ge=0, le=600, description="How long requests in flight may go on after the broker was told to stop."
    )

    @field_validator("address")
    @classmethod
    def _understood(cls, address: str) -> str:
        _endpoint(address)
        return address

    @field_validator("socket_mode", mode="before")
    @classmethod
    def _permissions(cls, mode: object) -> object:
        # Three digits without 0o are a decimal number. Most of these are no permissions; pydantic would name the bound as 511.
        if isinstance(mode, int) and not isinstance(mode, bool) and not 0 <= mode <= _PERMISSIONS:
            raise ValueError(f"must be from 0 up to {_PERMISSIONS:#o}, and octal digits follow 0o, as in 0o660")
        return mode

    @field_validator("tls_key_file")
    @classmethod
    def _pair(cls, key_file: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert_file" in info.data and (info.data["tls_cert_file"] is None) != (key_file is None):
            raise ValueError("set tls_cert_file and tls_key_file both, or neither")
        return key_file

    @field_validator("allow_plain_http")
    @classmethod
    def _safe(cls, allowed: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - the setting's own type
        address = info.data.get("address")
        plain = "tls_cert_file" in info.data and info.data["tls_cert_file"] is None
        if address is not None and plain and not (allowed or _is_private(address)):
            raise ValueError(
                f"server.address {address} is reached by other machines; set tls_cert_file and tls_key_file, "
                "or allow_plain_http = true if something else protects the way"
            )
        return allowed

    def endpoint(self) -> tuple[str, int] | Path:
        """Host and port, or the path of the Unix socket."""
        return _endpoint(self.address)


def _endpoint(address: str) -> tuple[str, int] | Path:
    """What an address means. Raises `ValueError` when it means nothing."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError("the path of a Unix socket must be absolute, as in unix:/run/broker/broker.sock")
        return path
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()):
        raise ValueError("not understood; allowed are host:port, as in 127.0.0.1:8200, and unix:/path")
    if len(port) > len(str(_LAST_PORT)) or int(port) > _LAST_PORT:
        raise ValueError(f"the port must be between 0 and {_LAST_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_private(address: str) -> bool:
    """Whether only this machine reaches the address: a Unix socket, `localhost`, or a loopback address."""
    endpoint = _endpoint(address)
    if isinstance(endpoint, Path) or endpoint[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(endpoint[0]).is_loopback
    except ValueError:
        return False
