"""`broker audit`: whether the log is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.audit.chain import Head
from broker.audit.verify import Report, verify
from broker.cli.serve import DEFAULT_CONFIG, chosen
from broker.errors import ConfigError, InvalidRequest, StoreUnavailable
from broker.printable import printable

INTACT, BROKEN, BEGINS_LATE = 0, 1, 2
"""Exit codes of `broker audit verify`."""
_LATE = (
    "BEGINS LATE at sequence {found}, not {expected}: what was before it is gone or was not given. "
    "Give the older files too, or say --from {found} if they are gone for a good reason."
)


app = typer.Typer(name="audit", help="The audit log.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """The audit log."""


@app.command("verify")
def verify_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="The log's files, the oldest first; the configured one unless given.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help=f"The configuration: where store and key are; {DEFAULT_CONFIG} unless given.")
    ] = None,
    beginning: Annotated[
        int, typer.Option("--from", min=1, help="The first sequence number that the files hold; older ones are knowingly gone.")
    ] = 1,
) -> None:
    """Checks the chain and names the first line that breaks it, a cut-off tail included; may run beside the broker."""
    from broker.config import load  # noqa: PLC0415 - a command loads its room when it is called
    from broker.seal.keyring import Purpose  # noqa: PLC0415
    from broker.seal.settings import provider  # noqa: PLC0415
    from broker.store.sqlite.peek import exists, peek  # noqa: PLC0415

    settings = load(chosen(config))
    directory = settings.store.directory
    if not files and settings.audit.device == "stdout":
        raise ConfigError(['audit.device: the log goes to standard output ("stdout"): give the files that it was kept in'])
    if not exists(directory):
        raise StoreUnavailable(f"there is no store in {directory}: name the configuration of the broker that wrote the log")
    peeked = peek(directory, provider(settings.seal, directory).master_key())
    paths = files or [settings.audit.path or directory / "audit.log"]
    report = verify_files(paths, peeked.keyring.subkey(Purpose.AUDIT), peeked.head)
    raise typer.Exit(conclude(report, beginning, Console()))


def verify_files(paths: Sequence[Path], key: bytes, head: Head | None) -> Report:
    """Verifies log files, the oldest first; `key` is the audit subkey, `head` the newest entry that the store knows of.

    Raises `InvalidRequest` when a file can't be read.
    """
    try:
        return verify(paths, key, head)
    except OSError as error:
        raise InvalidRequest(f"{error.filename or paths[0]} can't be read: {error.strerror or error}") from error


def conclude(report: Report, beginning: int, console: Console) -> int:
    """Shows a report, and gives the exit code that says the same; the log is expected to hold sequence `beginning` first."""
    late = report.intact and (report.begins_at or beginning) > beginning
    console.print(_shown(report))
    if late:
        console.print(Text(_LATE.format(found=report.begins_at, expected=beginning), style="bold red"))
    return BROKEN if not report.intact else BEGINS_LATE if late else INTACT


def _shown(report: Report) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for column in ("lines", "first", "last"):
        table.add_column(column, justify="right")
    for extent in report.extents:
        table.add_row(Text(printable(str(extent.file))), str(extent.lines), _number(extent.first), _number(extent.last))
    return Group(table, *(Text(printable(line)) for line in _remarks(report)), _verdict(report))


def _remarks(report: Report) -> list[str]:
    remarks = list(report.remarks)
    if report.starts_at is not None and report.starts_at > 1:
        remarks.append(f"Verification starts at sequence {report.starts_at}: what stands before it can't be proved.")
    return remarks


def _verdict(report: Report) -> Text:
    if report.flaw is None:
        return Text(f"intact up to sequence {report.ends_at}", style="bold green")
    flaw = report.flaw
    text = f"BROKEN {flaw.file}:{flaw.line} sequence {flaw.sequence} {flaw.wrong}: {flaw.detail}"
    return Text(printable(text), style="bold red")


def _number(sequence: int | None) -> str:
    return "-" if sequence is None else str(sequence)
