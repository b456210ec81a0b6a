"""The demo from its first line to its last, whatever comes in between."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import ClassVar, Protocol, TypeVar

from broker.clock import stopwatch_s
from broker.demo.acts import ROLE, write_role
from broker.demo.caller import DemoFailed
from broker.demo.scene import DATABASE, Scene, Stage
from broker.demo.screen import Screen
from broker.testing.postgresql import ServerFailed

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C ended, as shells count it."""
_KEPT_LEASE_S = 600
_T = TypeVar("_T")


class Interrupted(Exception):
    """somebody pressed Ctrl-C, or the system asked us to end."""


class Tale(Protocol):
    """Something that happens on a scene."""

    title: ClassVar[str]
    scene: Scene

    def __init__(self, scene: Scene, screen: Screen) -> None: ...

    async def tell(self) -> None:
        """The whole of it. Raises `DemoFailed` when a step goes otherwise than it should."""
        ...

    async def leave_nothing(self) -> None:
        """Takes away what it made in the database, and shows that nothing is left. Raises `DemoFailed` when something is."""
        ...


async def play(tale: type[Tale], screen: Screen, *, keep: bool) -> int:
    """Plays a tale; answers the exit status. Whatever happens, everything is removed before this returns.

    Ctrl-C, SIGTERM and SIGHUP end it at any moment. With `keep` everything stays up after the story until such a signal, which
    then is the regular end.
    """
    began = stopwatch_s()
    stop = _stop_on_signals()
    stage = Stage()
    try:
        story = await _unless(stop, _tell(tale, stage, screen))
        if keep:
            await _unless(stop, _invite(story.scene, screen))
            await stop.wait()
            stop.clear()
        await _unless(stop, story.leave_nothing())
    except Interrupted:
        screen.failed("Interrupted: everything is being removed.")
        return INTERRUPTED
    except (DemoFailed, ServerFailed) as error:
        screen.failed(f"The demo did not go as it should: {error}")
        return FAILED
    finally:
        # Signals only set `stop` now, so nothing cancels this.
        await stage.clear()
    screen.end(f"The users, the broker, the database and their files: all removed. It took {stopwatch_s() - began:.0f} s.")
    return 0


async def _tell(tale: type[Tale], stage: Stage, screen: Screen) -> Tale:
    screen.title(tale.title, "A real PostgreSQL and a real broker; every outcome is what they said.")
    made = tale(await stage.set_up(), screen)
    await made.tell()
    return made


async def _invite(scene: Scene, screen: Screen) -> None:
    await write_role(scene, lease_s=_KEPT_LEASE_S)
    screen.part("Yours to try, until Ctrl-C")
    token = f"-H @{scene.broker.write_token_header()}"
    for line in (
        f"export VAULT_ADDR={scene.broker.address} VAULT_TOKEN={scene.broker.root_token.reveal()}",
        f"curl {token} $VAULT_ADDR/v1/database/creds/{ROLE}",
        f"""curl {token} -X PUT -d '{{"lease_id": "..."}}' $VAULT_ADDR/v1/sys/leases/lookup""",
        f"""curl {token} -X PUT -d '{{"lease_id": "..."}}' $VAULT_ADDR/v1/sys/leases/revoke""",
        f"psql 'host={scene.server.host} port={scene.server.port} dbname={DATABASE} user=...'",
        f"tail -f {scene.broker.audit_file}",
    ):
        screen.plain(line)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _unless(stop: asyncio.Event, work: Coroutine[object, object, _T]) -> _T:
    """What `work` gives. Raises `Interrupted`, with `work` ended, when `stop` comes first."""
    acting = asyncio.create_task(_with_a_reader(work))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not acting.done():
        acting.cancel()
        await asyncio.wait({acting})
    # Ctrl-C reaches the programs that PostgreSQL is made with, too: then the work fails of it before we end it.
    if acting.cancelled() or (stop.is_set() and acting.exception() is not None):
        raise Interrupted
    return acting.result()


async def _with_a_reader(work: Coroutine[object, object, _T]) -> _T:
    """What `work` gives. Raises `Interrupted` when whoever read our output is gone, which rich turns into an exit."""
    try:
        return await work
    except SystemExit as error:
        raise Interrupted from error
