"""`broker reconcile`: what databases and store have of each other's users, and put right on request."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from broker.cli import exits
from broker.cli.remote import DEFAULT_ADDRESS, Address, Remote, TokenFile, remote
from broker.errors import BrokerError, Unavailable
from broker.printable import printable

AGREE, DIFFER, INCOMPLETE = 0, 1, 2
"""Exit codes, as those of diff(1): nothing is left to be done, something is, and not everything could be compared, or nothing."""
_POLL_S = 0.2
_PATH = "sys/reconcile"
_MEANINGS = {
    "unknown_user": "the store has no lease of it; --apply --drop-unknown revokes it",
    "left_behind": "its lease was taken off the books by force; --apply --drop-unknown revokes it",
    "user_back": "its lease is gone; --apply revokes it again",
    "missing_user": "the lease's user does not exist; --apply ends the lease",
    "login_off": "the lease is active; --apply lets its user log in again",
    "ends_early": "the lease lives longer than its user's login; --apply extends that",
    "login_on": "a prepared user that can log in; --apply revokes it",
    "forged_marker": "somebody wrote the marker; never touched, look who did",
    "elsewhere": "its lease belongs to another database, of which this is a copy; never touched",
    "unreadable_lease": "its lease does not open: the store was damaged, restore it; never touched",
}


def reconcile(
    *,
    connection: Annotated[str, typer.Argument(help="The connection to compare; all unless given.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Put right what no doubt is possible about.")] = False,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="With --apply: revoke users, too, that the store does not know.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
) -> None:
    """Compares the users of databases with the leases of a running broker; changes nothing unless told to."""
    if drop_unknown and not apply:
        raise typer.BadParameter("only with --apply", param_hint="--drop-unknown")
    order = {"connection": connection, "dry_run": not apply, "drop_unknown": drop_unknown}
    try:
        found = asyncio.run(_carried_out(remote(address, token_file), order))
    except BrokerError as error:
        if exits.status(error) != exits.FAILED:
            raise
        # The status of any failure is here the one of a difference.
        typer.echo(f"broker: {printable(str(error))}", err=True)
        raise typer.Exit(INCOMPLETE) from None
    if json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(found, Console(soft_wrap=True))
    raise typer.Exit(_status(found))


async def _carried_out(broker: Remote, order: dict[str, object]) -> dict[str, Any]:
    """What the run found. Raises what `Remote.ask` raises, and `Unavailable` where the broker forgot the run before it ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: dict[str, Any] = (await broker.ask("POST", _PATH, order))["data"]
    begun, console = found["started"], Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("comparing", total=None)
        while found["state"] == "running":
            await asyncio.sleep(_POLL_S)
            found = (await broker.ask("GET", _PATH))["data"]
            if found["started"] != begun:
                raise Unavailable("what came of it is not known: the broker was started anew, or somebody began another run")
            bar.update(task, total=found["expected"] or None, completed=found["compared"])
    return found


def _show(found: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("connection", "users", "leases", "differ", "put right"):
        table.add_column(column, justify="left" if column == "connection" else "right")
    for each in found["connections"]:
        counts = (each["users"], each["leases"], sum(each["found"].values()), sum(each["amended"].values()))
        table.add_row(_text(each["connection"] or "-"), *(f"{count:,}" for count in counts))
    console.print(table)
    for each in found["connections"]:
        _show_found(each, console)
    if _status(found) == AGREE:
        console.print(Text("database and store agree", style="bold green"))


def _show_found(each: dict[str, Any], console: Console) -> None:
    """What was found on one connection, beyond the figures."""
    name = each["connection"]
    for kind, count in each["found"].items():
        console.print(_text(f"{name}: {count:,} {kind}: {_MEANINGS.get(kind, '')}", style="yellow"))
    for difference in each["differences"]:
        console.print(_text(f"  {difference['kind']}  {difference['username']}  {difference['lease_id']}".rstrip()))
    if each["left_out"]:
        console.print(_text(f"  and {each['left_out']:,} more, not named"))
    if each["sessions_ended"]:
        console.print(_text(f"{name}: sessions of users that no longer exist, ended: {each['sessions_ended']:,}"))
    if each["sessions_left"]:
        console.print(
            _text(f"{name}: sessions of users that no longer exist, going on: {each['sessions_left']:,}", style="yellow")
        )
    for concern in each["concerns"]:
        console.print(_text(f"{name}: {concern}", style="yellow"))
    if each["error"]:
        console.print(_text(f"{name}: not compared to the end: {each['error']}", style="bold red"))


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _status(found: dict[str, Any]) -> int:
    reports = found["connections"]
    if any(each["error"] for each in reports):
        return INCOMPLETE
    left = any(count > each["amended"].get(kind, 0) for each in reports for kind, count in each["found"].items())
    return DIFFER if left or any(each["concerns"] or each["sessions_left"] for each in reports) else AGREE
