"""A role whose users could leave access behind, which nothing finds, is told so when it is tried."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from broker.model import Terms
from broker.secret import Secret

HOME = "app"
SERVER = ("pg_execute_server_program", "pg_write_server_files")


async def granted(scene: Any, role: str) -> None:
    """Lets the broker's login hand a role on."""
    if scene.place.limited:
        await scene.root.execute(f"GRANT {role} TO limited WITH ADMIN OPTION")


async def test_group_that_can_log_in_is_told(scene: Any) -> None:
    """A user sets its group's password and logs in as that when it is gone itself; directly or by way of another group."""
    await scene.root.execute("CREATE ROLE team LOGIN PASSWORD 'old'; CREATE ROLE via; GRANT team TO via")
    try:
        await granted(scene, "team, via")
        for group in ("team", "via"):
            terms = Terms(options={"grant_roles": [group]})
            [warning] = (await scene.engine.rehearse(terms)).warnings
            assert "could become team, which can log in" in warning
            user, password = await scene.create(terms)
            wire = await scene.session(user.name, password)
            await wire.execute(f"SET ROLE team; ALTER ROLE team PASSWORD 'of {group}'")
            assert not any(error for errors in (await scene.remove([user])).values() for error in errors)
            after = await asyncpg.connect(scene.place.server.dsn("team", Secret(f"of {group}"), HOME).reveal())
            await after.close()
    finally:
        await scene.root.execute("DROP ROLE via, team")


async def test_group_that_may_only_be_inherited_is_not_told(scene: Any) -> None:
    """From 16 on a membership may be one by which nobody becomes the group."""
    if not scene.place.new:
        return
    await scene.root.execute("CREATE ROLE team LOGIN")
    try:
        await granted(scene, "team")
        made = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"
        terms = Terms(creation=(made, 'GRANT team TO "{{name}}" WITH INHERIT TRUE, SET FALSE'))
        assert not (await scene.engine.rehearse(terms)).warnings
    finally:
        await scene.root.execute("DROP ROLE team")


@pytest.mark.parametrize("role", SERVER)
async def test_way_to_the_servers_account_is_told(scene: Any, role: str) -> None:
    """What is started or written there is nobody's by the database's books."""
    await granted(scene, role)
    try:
        [warning] = (await scene.engine.rehearse(Terms(options={"grant_roles": [role]}))).warnings
        assert f"programs or files on the server ({role})" in warning
    finally:
        if scene.place.limited:
            await scene.root.execute(f"REVOKE {role} FROM limited")
