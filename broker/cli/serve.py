"""`broker serve`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.errors import ConfigError

DEFAULT_CONFIG = Path("/etc/broker/broker.toml")
NO_CONFIG = f"there is no {DEFAULT_CONFIG}: give --config FILE, or try broker serve --dev"


def serve(
    config: Annotated[Path | None, typer.Option(help=f"The configuration; {DEFAULT_CONFIG} unless given.")] = None,
    dev: Annotated[  # noqa: FBT002 - a command-line switch
        bool, typer.Option("--dev", help="For trying out: key in memory, state in a temporary directory, loopback only.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="With --dev: where to listen, 127.0.0.1:8200 unless given.")] = None,
) -> None:
    """Runs the broker until SIGTERM; SIGHUP reopens the audit log."""
    # Nothing is open yet: whoever rotates the log meanwhile needs nothing of us, and its default action would end us.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if dev and config is not None:
        raise ConfigError(["--config and --dev exclude each other: --dev takes no configuration"])
    if dev:
        _serve_dev(address or "127.0.0.1:8200")
        return
    if address is not None:
        raise ConfigError(["--address goes with --dev; otherwise set server.address in the configuration"])
    from broker import config as configuration  # noqa: PLC0415 - a command loads its room when it is called

    _run(configuration.load(chosen(config)))


def chosen(config: Path | None) -> Path:
    """The configuration to use: the one given, else the installed one. Raises `ConfigError` when there is neither."""
    if config is None and not DEFAULT_CONFIG.exists():
        raise ConfigError([NO_CONFIG])
    return config or DEFAULT_CONFIG


def _serve_dev(address: str) -> None:
    from broker import config as configuration  # noqa: PLC0415
    from broker.daemon import Daemon, Seams  # noqa: PLC0415
    from broker.seal.providers import MemoryKey  # noqa: PLC0415
    from broker.secret import Secret  # noqa: PLC0415

    token = Secret("")

    def keep(made: Secret) -> None:
        nonlocal token
        token = made

    def started(daemon: Daemon) -> None:
        typer.echo(f"Address     {daemon.address}")
        typer.echo(f"Root token  {token.reveal()}")
        typer.echo("Everything is gone when this process ends. Not for production.")

    with tempfile.TemporaryDirectory(prefix="broker-dev-") as directory:
        _run(
            configuration.parse(dev_content(address, Path(directory))),
            Seams(key=MemoryKey(), keep_root_token=keep),
            started=started,
        )


def dev_content(address: str, directory: Path) -> dict[str, Any]:
    """The configuration of a development broker, as if it had been read from a file. Raises `ConfigError` off loopback."""
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(["--address: --dev listens on loopback only, e.g. 127.0.0.1:8200"])
    return {
        "server": {"address": address},
        "store": {"directory": str(directory / "state")},
        "log": {"format": "console", "level": "warning"},
    }


def _run(config: Any, seams: Any = None, **extra: Any) -> None:
    from broker import daemon, log  # noqa: PLC0415

    log.configure(config.log)
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        asyncio.run(daemon.serve(config, seams, **extra))
    else:
        uvloop.run(daemon.serve(config, seams, **extra))
