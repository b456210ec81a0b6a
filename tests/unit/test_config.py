"""The configuration: every mistake named, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.config import Config, load, parse
from broker.errors import ConfigError

ETC = Path(__file__).parents[2] / "etc" / "broker.toml"


def _mistakes(content: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        parse(content)
    return error.value.mistakes


def test_an_empty_configuration_is_the_defaults() -> None:
    """Nothing has to be set."""
    assert parse({}) == Config()
    assert (parse({}).leases.default_ttl, parse({}).leases.max_ttl) == (3_600, 86_400)


def test_the_example_loads() -> None:
    """What is shipped is valid."""
    load(ETC)


def test_spans_are_read_as_people_write_them() -> None:
    """Seconds or a text such as 1h30m."""
    assert parse({"leases": {"default_ttl": "1h30m", "max_ttl": 7_200}}).leases.default_ttl == 5_400


@pytest.mark.parametrize(
    ("content", "key", "told"),
    [
        ({"leases": {"default_ttl": "soon"}}, "leases.default_ttl", "1h30m"),
        ({"leases": {"default_ttl": 0}}, "leases.default_ttl", "greater than or equal to 1"),
        ({"leases": {"revocation_batch": 1_000}}, "leases.revocation_batch", "256"),
        ({"leases": {"issue_timeout_s": "x"}}, "leases.issue_timeout_s", "number"),
        ({"leases": {"default_ttl": "48h"}}, "leases.max_ttl", "24h is less than default_ttl (48h)"),
        ({"leases": {"max_ttl": "30m"}}, "leases.max_ttl", "30m is less than default_ttl (1h)"),
        ({"leases": {"issue_timeout_s": 5}}, "engines.issue_timeout_s", "15 is more than leases.issue_timeout_s (5)"),
        ({"server": {"request_timeout_s": 20}}, "leases.issue_timeout_s", "30 is more than server.request_timeout_s (20)"),
        ({"tokens": {"default_ttl": "100d"}}, "tokens.max_ttl", "768h is less than default_ttl (2400h)"),
        ({"tokens": {"max_ttl": "x"}}, "tokens.max_ttl", "1h30m"),
        ({"audit": {"device": "syslog"}}, "audit.device", "'file' or 'stdout'"),
        ({"log": {"level": "loud"}}, "log.level", "'debug', 'info', 'warning' or 'error'"),
        ({"leases": 5}, "leases", "must be a section"),
        ({"server": {"address": 5}}, "server.address", "must be text in quotes"),
        ({"server": {"address": "here"}}, "server.address", "host:port"),
        ({"server": {"address": "127.0.0.1:65536"}}, "server.address", "between 0 and 65535"),
        ({"server": {"address": "unix:broker.sock"}}, "server.address", "absolute"),
        ({"server": {"address": "0.0.0.0:8200"}}, "server.allow_plain_http", "0.0.0.0:8200"),
        ({"server": {"allow_plain_http": "perhaps"}}, "server.allow_plain_http", "must be true or false"),
        ({"server": {"max_in_flight": 1.5}}, "server.max_in_flight", "must be a whole number"),
        ({"server": {"tls_cert_file": "/cert.pem"}}, "server.tls_key_file", "both, or neither"),
        ({"store": {"directory": "state"}}, "store.directory", "absolute path"),
        ({"store": {"directory": 5}}, "store.directory", "must be a path"),
        ({"audit": {"path": "audit.log"}}, "audit.path", "absolute path"),
        ({"engines": {"allowed_distributions": "one"}}, "engines.allowed_distributions", "must be a list"),
        ({"engines": {"breaker": {"failures": 0}}}, "engines.breaker.failures", "greater than or equal to 1"),
        ({"leases": {"max_per_role": True}}, "leases.max_per_role", "must be a whole number"),
        ({"leases": {"max_per_role": "5"}}, "leases.max_per_role", "must be a whole number"),
        ({"server": {"drain_s": True}}, "server.drain_s", "must be a number"),
        ({"server": {"allow_plain_http": 1}}, "server.allow_plain_http", "must be true or false"),
        ({"leases": {"burst_alarm": 2**63}}, "leases.burst_alarm", "64 bits"),
        ({"engines": {"breaker": {"failures": 2**64}}}, "engines.breaker.failures", "64 bits"),
        ({"leases": {"revocation_batch": 2**64}}, "leases.revocation_batch", "64 bits"),
        ({"seal": {"path": "/key\0"}}, "seal.path", "NUL"),
        ({"seal": {"path": "master.key"}}, "seal.path", "absolute path"),
        ({"seal": {"path": ""}}, "seal.path", "absolute path"),
        ({"seal": {"provider": "environment"}}, "seal.name", 'provider = "environment"'),
        ({"server": {"socket_mode": 660}}, "server.socket_mode", "up to 0o777, and octal digits follow 0o"),
        ({"server": {"socket_mode": "0660"}}, "server.socket_mode", "must be a whole number"),
    ],
)
def test_a_mistake_is_named_with_its_key(content: dict[str, Any], key: str, told: str) -> None:
    """One line, led by the key, that says what is allowed."""
    (line,) = _mistakes(content)
    assert line.startswith(f"{key}: ")
    assert told in line


@pytest.mark.parametrize(
    ("content", "key", "among"),
    [
        ({"lease": {}}, "lease", "leases"),
        ({"leases": {"max_tll": 1}}, "leases.max_tll", "max_ttl"),
        ({"engines": {"breaker": {"failure": 1}}}, "engines.breaker.failure", "failures"),
    ],
)
def test_an_unknown_key_is_refused(content: dict[str, Any], key: str, among: str) -> None:
    """A misspelt key does not pass, and the allowed ones of that place are listed."""
    (line,) = _mistakes(content)
    assert line.startswith(f"{key}: unknown key")
    assert among in line


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody has to start the daemon once for each."""
    lines = _mistakes({"leases": {"default_ttl": "x", "max_ttl": "y", "refil": 1}, "nowhere": {}})
    assert {line.partition(":")[0] for line in lines} == {"leases.default_ttl", "leases.max_ttl", "leases.refil", "nowhere"}


def test_a_sections_own_rules_hide_no_other_mistake() -> None:
    """What only shows between two keys of a section is named together with its other mistakes."""
    lines = _mistakes({"server": {"address": "here", "tls_key_file": "/key.pem", "drain_s": -1}})
    assert [line.partition(":")[0] for line in lines] == ["server.address", "server.tls_key_file", "server.drain_s"]


def test_what_a_file_can_say_is_understood() -> None:
    """Each type of TOML where it is meant: paths and durations as text, lists, whole numbers for spans with fractions."""
    config = parse(
        {
            "server": {
                "tls_cert_file": "/cert.pem",
                "tls_key_file": "/key.pem",
                "socket_mode": 0o600,
                "drain_s": 5,
                "keepalive_s": 1.5,
            },
            "store": {"directory": "/state"},
            "seal": {"path": "/master.key"},
            "audit": {"path": "/audit.log"},
            "engines": {"allowed_distributions": ["one"]},
            "leases": {"max_per_role": 2**63 - 1, "sweep": "1m"},
        }
    )
    assert (config.server.drain_s, config.server.keepalive_s, config.leases.sweep) == (5, 1.5, 60)
    assert config.seal.path == Path("/master.key")
    assert config.engines.allowed_distributions == ("one",)


@pytest.mark.parametrize(
    ("content", "told"), [(None, "can't be read"), (b"leases = [", "not TOML"), (b"# caf\xe9\n", "not UTF-8 text, at byte 5")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    """Missing, no TOML, or no text: the path and the reason."""
    path = tmp_path / "broker.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as error:
        load(path)
    assert str(path) in str(error.value)
