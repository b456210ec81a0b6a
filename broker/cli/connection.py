"""`broker connection`: whether a database can be worked with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.cli import exits
from broker.cli.remote import DEFAULT_ADDRESS, Address, TokenFile, remote
from broker.printable import printable

app = typer.Typer(name="connection", help="The connections to databases.", no_args_is_help=True)


@app.callback()
def connection() -> None:
    """The connections to databases."""


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="Name of the connection.")],
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Looks up and tries what a connection's login may do; then a user is made, logs in, is renewed and revoked. Leaves no trace."""
    answer = asyncio.run(remote(address, token_file).ask("POST", f"database/check/{quote(name, safe='')}"))
    found = answer["data"]
    if json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        show(found, Console(soft_wrap=True))
    if not found["ok"]:
        raise typer.Exit(exits.FAILED)


def show(found: Mapping[str, Any], console: Console) -> None:
    """Prints what was tried, what is missing, and the statements that would give it, ready to be copied."""
    table = Table(title=f"Connection {found['connection']}", title_justify="left", show_edge=False, box=None, pad_edge=False)
    for heading in ("", "What", "How it went"):
        table.add_column(heading, overflow="fold")
    for step in found["steps"]:
        went = f"{step['milliseconds']:.1f} ms" if step["ok"] else step["error"]
        table.add_row(
            _verdict(good=step["ok"]), f"a user was {step['step']}" if step["ok"] else f"not {step['step']}", _text(went)
        )
    for lack in found["missing"]:
        said = lack["reason"] or ("no user can be made" if lack["fatal"] else "missing")
        table.add_row(_verdict(good=False), _text(lack["need"]), _text(said))
    console.print(table)
    remedies = [text for part in (*found["missing"], *found["steps"]) for text in _remedies(part["remedy"])]
    if remedies:
        console.print("\nTo be run by an administrator of the database:\n")
    for text in dict.fromkeys(remedies):
        console.print(_text(f"  {text.rstrip(';')};"))


def _text(text: str) -> Text:
    return Text(printable(text))


def _verdict(*, good: bool) -> Text:
    return Text("ok", style="green") if good else Text("bad", style="red")


def _remedies(remedy: str | list[str]) -> list[str]:
    return [text for text in ([remedy] if isinstance(remedy, str) else remedy) if text]
