"""Where the door may listen."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("127.0.0.1:8200", ("127.0.0.1", 8200)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8200", ("::1", 8200)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
        ("unix:/run/broker.sock", Path("/run/broker.sock")),
    ],
)
def test_private_addresses_serve_plain_http(address: str, endpoint: tuple[str, int] | Path) -> None:
    """Loopback and Unix sockets need no certificate."""
    assert ServerSettings(address=address).endpoint() == endpoint


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:8200", "[::]:8200", "10.0.0.1:1", "broker.example:8200", "localhost.example.com:1", "127.example.com:1"],
)
def test_public_addresses_need_tls_or_the_word(address: str) -> None:
    """Plain HTTP is refused where other machines listen, unless the configuration says so in so many words."""
    with pytest.raises(ValidationError, match="allow_plain_http = true"):
        ServerSettings(address=address)
    assert ServerSettings(address=address, allow_plain_http=True).endpoint()
    assert ServerSettings(address=address, tls_cert_file=Path("c"), tls_key_file=Path("k")).endpoint()


@pytest.mark.parametrize(
    "address", ["", "8200", "host", "host:", ":8200", "host:x", "host:65536", "host:-1", "unix:", "unix:rel"]
)
def test_other_addresses_are_refused(address: str) -> None:
    """With what is allowed."""
    with pytest.raises(ValidationError, match=r"address\n"):
        ServerSettings(address=address, allow_plain_http=True)


@pytest.mark.parametrize("half", [{"tls_cert_file": "c"}, {"tls_key_file": "k"}])
def test_certificate_and_key_come_together(half: dict[str, str]) -> None:
    """One without the other is a mistake."""
    with pytest.raises(ValidationError, match="both, or neither"):
        ServerSettings.model_validate(half)


def test_unknown_keys_are_refused() -> None:
    """A misspelt key does not pass."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        ServerSettings.model_validate({"adress": "127.0.0.1:1"})


def test_every_setting_says_what_it_is() -> None:
    """The configuration reference is made from these."""
    assert all(field.description and field.description.endswith(".") for field in ServerSettings.model_fields.values())
