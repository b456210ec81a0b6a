"""One who calls the broker over HTTP with a token, as an application's own code would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from broker.secret import Secret


class DemoFailed(RuntimeError):
    """The demo did not go as it should; the message says where."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the broker: its HTTP status, and its body (empty for 204)."""

    status: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user for the length of one lease, as the application was told it."""

    username: str
    password: Secret
    lease_id: str
    lease_s: int


class Caller:
    """Calls the broker at `address` (such as `http://127.0.0.1:8200`) with one token, over a session that others share."""

    def __init__(self, session: aiohttp.ClientSession, address: str, token: Secret) -> None:
        self._session = session
        self._address = address
        self._headers = {"X-Vault-Token": token.reveal(), "X-Vault-Request": "true"}

    async def call(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> Reply:
        """Asks `path` (without `/v1/`). Raises `DemoFailed` with the broker's own words when it says no."""
        reply = await self._ask(method, path, fields)
        if reply.status >= HTTPStatus.BAD_REQUEST:
            raise DemoFailed(f"{method} /v1/{path} answered {reply.status}: {_said(reply)}")
        return reply

    async def refusal(self, method: str, path: str, fields: Mapping[str, Any]) -> str:
        """The broker's own words for its refusal. Raises `DemoFailed` when it did what was asked."""
        reply = await self._ask(method, path, fields)
        if reply.status < HTTPStatus.BAD_REQUEST:
            raise DemoFailed(f"{method} /v1/{path} answered {reply.status}: the broker did what it should have refused")
        return f"{reply.status}  {_said(reply)}"

    async def credential(self, role: str) -> Credential:
        """A new lease of `role`. Raises `DemoFailed` as `call` does."""
        reply = await self.call("GET", f"database/creds/{role}")
        return Credential(
            username=reply.body["data"]["username"],
            password=Secret(reply.body["data"]["password"]),
            lease_id=reply.body["lease_id"],
            lease_s=reply.body["lease_duration"],
        )

    async def _ask(self, method: str, path: str, fields: Mapping[str, Any] | None) -> Reply:
        async with self._session.request(method, f"{self._address}/v1/{path}", json=fields, headers=self._headers) as response:
            return Reply(response.status, await response.json() if response.status != HTTPStatus.NO_CONTENT else {})


def _said(reply: Reply) -> str:
    return "; ".join(reply.body.get("errors", []))
