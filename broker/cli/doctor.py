"""`broker doctor`: what is installed, configured and reachable, and what is wrong with it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from broker import __version__
from broker.cli import exits
from broker.cli.serve import DEFAULT_CONFIG, chosen
from broker.clock import SystemClock
from broker.config import Config, load
from broker.errors import BrokerError, ConfigError, StoreInUse
from broker.printable import printable
from broker.seal.settings import SealSettings
from broker.server.settings import ServerSettings

_DISTRIBUTION = "db-credential-broker"
_LIBRARIES = ("aiohttp", "apscheduler", "asyncpg", "cryptography", "structlog", "uvloop")


class Verdict(StrEnum):
    """How a check came out."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    verdict: Verdict
    subject: str
    text: str


def doctor(
    config: Annotated[Path | None, typer.Option(help=f"The configuration to check; {DEFAULT_CONFIG} unless given.")] = None,
) -> None:
    """Checks versions, plugins, configuration, certificate, store, key and permissions; with the daemon stopped, each connection too."""
    settings, configured = _configured(config)
    allowed = settings.engines.allowed_distributions if settings else ()
    findings = [*versions(), *import_clash(), *plugins(allowed), *configured, *(_state(settings) if settings else ())]
    for finding in findings:
        typer.echo(printable(f"{finding.verdict:<5} {finding.subject:<28} {finding.text}"))
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(exits.FAILED)


def versions() -> Iterator[Finding]:
    """The program, the interpreter and the libraries it stands on."""
    yield Finding(Verdict.GOOD, "broker", __version__)
    yield Finding(Verdict.GOOD, "python", f"{platform.python_version()} ({platform.system()})")
    yield Finding(Verdict.GOOD, "sqlite", sqlite3.sqlite_version)
    for library in _LIBRARIES:
        try:
            yield Finding(Verdict.GOOD, library, importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(Verdict.NOTE, library, "not installed")


def import_clash() -> Iterator[Finding]:
    """Whether the import `broker` is ours alone: two other packages install one of the same name."""
    owners = sorted(set(importlib.metadata.packages_distributions().get("broker", ())) | {_DISTRIBUTION})
    if owners == [_DISTRIBUTION]:
        yield Finding(Verdict.GOOD, "import", f"broker belongs to {_DISTRIBUTION}")
    else:
        yield Finding(
            Verdict.BAD, "import", f"broker is claimed by {', '.join(owners)}: install into an environment of its own"
        )


def plugins(allowed_distributions: Collection[str] = ()) -> Iterator[Finding]:
    """Every engine plugin that is installed, and the state of each; an empty `allowed_distributions` allows all."""
    from broker.engines.registry import Registry  # noqa: PLC0415 - scans the installed distributions

    states = Registry.installed(allowed_distributions).list_plugins()
    if not states:
        yield Finding(Verdict.BAD, "plugins", "none installed: no database can be spoken to")
    for state in states:
        verdict = Verdict.BAD if state.reason else Verdict.GOOD
        yield Finding(verdict, state.plugin_name, state.reason or f"from {', '.join(state.distributions)}")


def _configured(path: Path | None) -> tuple[Config | None, list[Finding]]:
    try:
        config = load(chosen(path))
    except ConfigError as error:
        return None, [Finding(Verdict.BAD, "config", mistake) for mistake in error.mistakes]
    return config, [Finding(Verdict.GOOD, "config", str(path or DEFAULT_CONFIG))]


def certificate(settings: ServerSettings) -> Iterator[Finding]:
    """What HTTPS is served with, where that is configured: whether it can be loaded, and until when it is valid."""
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 - slow to load

    from broker.server.listen import tls_context  # noqa: PLC0415 - a command loads its room when it is called

    try:
        if tls_context(settings) is None or settings.tls_cert_file is None:
            return
    except ConfigError as error:
        for mistake in error.mistakes:
            yield Finding(Verdict.BAD, "certificate", mistake)
        return
    ends = load_pem_x509_certificate(settings.tls_cert_file.read_bytes()).not_valid_after_utc
    if ends.timestamp() * 1_000 < SystemClock().now_ms():
        yield Finding(Verdict.BAD, "certificate", f"{settings.tls_cert_file} ended on {ends:%Y-%m-%d}: clients refuse it")
    else:
        yield Finding(Verdict.GOOD, "certificate", f"{settings.tls_cert_file}, until {ends:%Y-%m-%d}")


def first_key(settings: SealSettings, directory: Path) -> Iterator[Finding]:
    """The master key before there is a store: the first start makes none but the file of the state directory's owner."""
    from broker.seal.settings import key_path, provider  # noqa: PLC0415 - a command loads its room when it is called

    path = key_path(settings, directory)
    if settings.provider == "file" and not os.path.lexists(path):
        if path.parent == directory or path.parent.is_dir():
            yield Finding(Verdict.NOTE, "key", f"{path} does not exist yet: the first start makes it")
        else:
            yield Finding(Verdict.BAD, "key", f"seal.path: there is no directory {path.parent}: make it, for the broker's user")
        return
    try:
        provider(settings, directory).master_key()
    except BrokerError as error:
        yield Finding(Verdict.BAD, "key", str(error))
    else:
        yield Finding(Verdict.GOOD, "key", "can be read")


def _state(config: Config) -> Iterator[Finding]:
    from broker.store.sqlite.peek import exists  # noqa: PLC0415 - a command loads its room when it is called

    yield from certificate(config.server)
    directory = config.store.directory
    try:
        found = list(_permissions(directory))
    except FileNotFoundError:
        yield Finding(Verdict.NOTE, "store", f"{directory} does not exist yet: the first start makes it")
        yield from first_key(config.seal, directory)
        return
    except OSError as error:
        yield Finding(Verdict.BAD, "store", f"store.directory: {directory} can't be looked into ({error.strerror})")
        return
    yield from found
    if not exists(directory):
        log_file = config.audit.path or directory / "audit.log"
        if config.audit.device == "file" and log_file.is_file() and log_file.stat().st_size:
            yield Finding(
                Verdict.BAD,
                "store",
                f"there is none in {directory}, yet there is an audit log, {log_file}: put the store's copy back",
            )
        else:
            yield Finding(Verdict.NOTE, "store", f"there is no store in {directory} yet: the first start makes it")
        yield from first_key(config.seal, directory)
        return
    try:
        yield from asyncio.run(_opened(config))
    except StoreInUse as in_use:
        yield from _beside(config, in_use)
    except BrokerError as error:
        yield Finding(Verdict.BAD, "store", str(error))


def _beside(config: Config, in_use: StoreInUse) -> Iterator[Finding]:
    """As much of a store as can be seen while a broker has it open."""
    from broker.seal.settings import provider  # noqa: PLC0415 - a command loads its room when it is called
    from broker.store.sqlite.peek import peek  # noqa: PLC0415

    directory = config.store.directory
    try:
        peek(directory, provider(config.seal, directory).master_key())
    except BrokerError as error:
        yield Finding(Verdict.BAD, "store", str(error))
        return
    yield Finding(Verdict.GOOD, "store", "opens with its key")
    yield Finding(Verdict.NOTE, "connections", f"not asked: {in_use}")


def _permissions(directory: Path) -> Iterator[Finding]:
    from broker.daemon.places import open_to_others  # noqa: PLC0415 - a command loads its room when it is called

    bad = dict(open_to_others(directory))
    for path in (directory, *sorted(directory.iterdir())):
        if path in bad:
            yield Finding(Verdict.BAD, "permissions", f"{path} is open to others ({bad[path]:04o}): chmod go= it")
        elif path.lstat().st_uid != os.geteuid():
            yield Finding(Verdict.NOTE, "permissions", f"{path} belongs to another user than the one running this")
    yield Finding(Verdict.GOOD, "permissions", f"{directory} looked through")


async def _opened(config: Config) -> list[Finding]:
    from broker.daemon import examine  # noqa: PLC0415 - loads every room

    found = await examine(config)
    findings = [Finding(Verdict.GOOD, "store", f"opens with its key; {found.live} live leases, {found.stuck} stuck")]
    for name, health in found.connections.items():
        if isinstance(health, BrokerError):
            findings.append(Finding(Verdict.BAD, f"connection {name}", str(health)))
        else:
            words = "writable" if health.writable else "read-only"
            findings.append(Finding(Verdict.GOOD, f"connection {name}", f"{health.version}, {words}"))
    return findings
