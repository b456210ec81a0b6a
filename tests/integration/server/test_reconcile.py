"""`sys/reconcile` and the command over it, on a whole broker."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.cli import reconcile as command
from broker.cli.remote import Remote
from broker.engines.protocol import Swept
from broker.errors import Unavailable
from broker.secret import Secret

ORDER = {"connection": "", "dry_run": True, "drop_unknown": False}


async def done(broker: Any) -> Any:
    """What the run that was asked for found."""
    async with asyncio.timeout(60):
        while (found := (await broker("GET", "sys/reconcile")).body["data"])["state"] == "running":
            await asyncio.sleep(0.01)
    return found


async def test_nothing_was_asked_for_yet(broker: Any) -> None:
    """Before the first run the answer says so."""
    assert (await broker("GET", "sys/reconcile")).body["data"]["state"] == "idle"


async def test_run_is_started_and_read(broker: Any, database: Any) -> None:
    """A lease whose user is missing is found by a dry run, with its id, and ended by one that may."""
    issued = (await broker("GET", "database/creds/app")).body
    database.users.clear()
    assert (await broker("POST", "sys/reconcile", {})).status == 202
    found = await done(broker)
    [report] = found["connections"]
    assert (report["connection"], report["found"], report["amended"]) == ("pg", {"missing_user": 1}, {})
    assert report["differences"][0]["lease_id"] == issued["lease_id"]
    assert found["expected"] >= found["compared"] > 0
    await broker("POST", "sys/reconcile", {"connection": "pg", "dry_run": False})
    assert (await done(broker))["connections"][0]["amended"] == {"missing_user": 1}


@pytest.mark.parametrize(
    ("body", "named"),
    [({"drop_unknown": True}, "drop_unknown"), ({"connection": "none"}, "none"), ({"dry_run": "perhaps"}, "dry_run")],
)
async def test_contradictions_are_refused(broker: Any, body: Any, named: str) -> None:
    """What can't be meant is 400 and named."""
    answer = await broker("POST", "sys/reconcile", body)
    assert answer.status == 400
    assert named in answer.errors[0]


async def test_command_shows_what_came_of_it(broker: Any, database: Any, capsys: Any) -> None:
    """It waits for the end, names each kind with what to do, and its status says whether something is left."""
    remote = Remote(broker.address, Secret(broker.token))
    assert command._status(await command._carried_out(remote, ORDER)) == command.AGREE
    await broker("GET", "database/creds/app")
    database.users.clear()
    found = await command._carried_out(remote, ORDER)
    assert command._status(found) == command.DIFFER
    command._show(found, command.Console(width=200))
    assert "1 missing_user: the lease's user does not exist; --apply ends the lease" in capsys.readouterr().out
    assert command._status(await command._carried_out(remote, {**ORDER, "dry_run": False})) == command.AGREE
    await broker("GET", "database/creds/app")
    database.users.clear()
    database.down = True
    assert command._status(await command._carried_out(remote, ORDER)) == command.INCOMPLETE
    assert json.dumps(found)


async def test_what_is_wrong_in_the_database_is_shown(broker: Any, database: Any, capsys: Any) -> None:
    """Answer and command give the engine's sentences, and the command's status says that something is left to be done."""
    remote = Remote(broker.address, Secret(broker.token))
    database.concerns.append("table goods is 70 % full")
    found = await command._carried_out(remote, ORDER)
    assert found["connections"][0]["concerns"] == ["table goods is 70 % full"]
    assert command._status(found) == command.DIFFER
    command._show(found, command.Console(width=200))
    shown = capsys.readouterr().out
    assert "pg: table goods is 70 % full" in shown
    assert "agree" not in shown


async def test_sessions_of_dropped_users_are_shown_before_they_are_ended(broker: Any, database: Any, capsys: Any) -> None:
    """A dry run counts them, in the answer and from the command, whose status says that something is left; then they are ended."""
    remote = Remote(broker.address, Secret(broker.token))
    database.abandoned = [Swept(identity="77", sessions=2)]
    found = await command._carried_out(remote, ORDER)
    assert [found["connections"][0][each] for each in ("sessions_left", "sessions_ended")] == [2, 0]
    assert command._status(found) == command.DIFFER
    command._show(found, command.Console(width=200))
    shown = capsys.readouterr().out
    assert "pg: sessions of users that no longer exist, going on: 2\n" in shown
    assert "agree" not in shown
    found = await command._carried_out(remote, {**ORDER, "dry_run": False})
    assert [found["connections"][0][each] for each in ("sessions_left", "sessions_ended")] == [0, 2]
    assert command._status(found) == command.AGREE


async def test_what_is_left_out_is_counted(broker: Any, database: Any, capsys: Any) -> None:
    """The answer names a hundred differences and says how many more there are; so does the command."""
    for _ in range(103):
        await broker("GET", "database/creds/app")
    database.users.clear()
    found = await command._carried_out(Remote(broker.address, Secret(broker.token)), ORDER)
    [report] = found["connections"]
    assert (report["found"], len(report["differences"]), report["left_out"]) == ({"missing_user": 103}, 100, 3)
    command._show(found, command.Console(width=200))
    assert "  and 3 more, not named\n" in capsys.readouterr().out


async def test_run_that_the_broker_forgot_is_no_agreement(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart in the middle, or another run in its place, leaves the command without an answer: it says so."""
    ask = Remote.ask

    async def forgetful(remote: Remote, method: str, path: str, body: Any = None) -> Any:
        answer = await ask(remote, method, path, body)
        changes = {"state": "running"} if method == "POST" else {"state": "idle", "started": None, "connections": []}
        return {"data": {**answer["data"], **changes}}

    monkeypatch.setattr(Remote, "ask", forgetful)
    with pytest.raises(Unavailable, match="not known"):
        await command._carried_out(Remote(broker.address, Secret(broker.token)), ORDER)
