"""The command `broker`. Each subcommand imports its room when it is called, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from broker import __version__
from broker.cli import exits
from broker.cli.audit import app as audit
from broker.cli.bench import bench
from broker.cli.connection import app as connection
from broker.cli.demo import demo
from broker.cli.doctor import doctor
from broker.cli.reconcile import reconcile
from broker.cli.serve import serve
from broker.errors import BrokerError, ConfigError
from broker.printable import printable

app = typer.Typer(
    name="broker",
    help="Database credential broker: database users that live for one session.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(demo)
app.command()(bench)
app.command()(doctor)
app.command()(reconcile)
app.add_typer(audit, name="audit")
app.add_typer(connection, name="connection")


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback shape
    if wanted:
        typer.echo(f"broker {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[  # noqa: FBT002 - its callback acts
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Database credential broker: database users that live for one session."""


def run() -> None:
    """Runs the command; an error of the broker becomes one clear line (or one a mistake) and its exit status."""
    try:
        app()
    except ConfigError as error:
        for mistake in error.mistakes:
            typer.echo(f"broker: {printable(mistake)}", err=True)
        sys.exit(exits.status(error))
    except BrokerError as error:
        typer.echo(f"broker: {printable(str(error))}", err=True)
        sys.exit(exits.status(error))
