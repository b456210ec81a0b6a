"""The attacks, one after the other. An attack that succeeds ends the demo as failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from broker.demo.acts import ROLE, introduce, leave_nothing, write_connection, write_role
from broker.demo.escalation import TIDY_ROLE, Escalation
from broker.demo.hiding import Hiding
from broker.demo.scene import GROUP, HEIR, OWNER, Scene
from broker.demo.screen import Screen

_LEASE_S = 600


@dataclass(slots=True)
class Attack:
    """Plays two attacks, each against plain statements first and then against the broker."""

    title: ClassVar[str] = "Two attacks by a user that was leased"
    scene: Scene
    screen: Screen

    async def tell(self) -> None:
        """The whole of it. Raises `DemoFailed` when an attack succeeds."""
        await introduce(self.scene, self.screen)
        await self.scene.prepare_attacks()
        await self._configure()
        await Hiding(self.scene, self.screen).play()
        await Escalation(self.scene, self.screen).play()

    async def leave_nothing(self) -> None:
        """Ends every lease that there is, and shows that no role is left in the database."""
        await leave_nothing(self.scene, self.screen)

    async def _configure(self) -> None:
        screen = self.screen
        screen.note(f"Members of {GROUP} read the shop's products, and may make things of their own in the schema 'drafts'.")
        await write_connection(self.scene, screen, ROLE, TIDY_ROLE)
        for name, heir, extra, meaning in (
            (ROLE, OWNER, {}, "a user with code is kept without login until somebody decides"),
            (TIDY_ROLE, HEIR, {"owned_code": "drop"}, "code is dropped"),
        ):
            screen.act("operator", f"POST /v1/database/roles/{name}")
            status = await write_role(
                self.scene, lease_s=_LEASE_S, name=name, extra={"owned_objects": "reassign", "reassign_to": heir, **extra}
            )
            await screen.done(f"{status}  joins {GROUP}; what users leave behind goes to {heir}; {meaning}")
