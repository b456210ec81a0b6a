"""How a command finds a running broker and its token, and what it says where it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from broker.cli.remote import Remote, remote
from broker.errors import ConfigError, PermissionDenied
from broker.secret import Secret


@pytest.mark.parametrize("token", ["a\nb", "  ", "\u00e9"])
def test_what_is_no_token_is_not_sent(tmp_path: Path, token: str) -> None:
    """Wherever it comes from, it is named by its place and not shown."""
    (tmp_path / "token").write_text(token)
    with pytest.raises(ConfigError, match=r"^no token: VAULT_TOKEN does not hold one$"):
        remote("http://127.0.0.1:1", None, {"VAULT_TOKEN": token})
    with pytest.raises(ConfigError, match=r"^no token: .*/token does not hold one$"):
        remote("http://127.0.0.1:1", tmp_path / "token", {})


@pytest.mark.parametrize("address", ["http://", "http://127.0.0.1:99999"])
async def test_what_is_no_address_is_named(address: str) -> None:
    """It is a mistake of whoever typed it, not a broker that does not answer."""
    with pytest.raises(ConfigError, match=r"--address: .* is no address"):
        await Remote(address, Secret("s.x"), tls=True).ask("GET", "sys/health")


async def test_errors_of_several_lines_are_one(tmp_path: Path) -> None:
    """What a broker says in Vault's words, a line for each error, is readable on one line."""

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"errors": ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}, status=403)

    application = web.Application()
    application.router.add_get("/v1/x", refuse)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        with pytest.raises(PermissionDenied, match=r"^2 errors occurred: \* permission denied \* invalid token$"):
            await Remote(f"unix:{tmp_path}/socket", Secret("s.x"), tls=True).ask("GET", "x")
    finally:
        await runner.cleanup()
