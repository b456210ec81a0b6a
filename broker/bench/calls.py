"""The calls that set a measured server up and that end leases, over Vault's HTTP API: the broker's and its peers'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from broker.bench.figures import Figure
from broker.bench.load import Order
from broker.clock import stopwatch_s
from broker.errors import Unavailable
from broker.secret import Secret

_SUCCESS = range(200, 300)
_LONGEST_CALL_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a measured server listens, and the token that may do everything there."""

    host: str
    port: int
    token: Secret

    def creds_order(self, role: str, *, clients: int, **rest: Any) -> Order:
        """A load that asks for leases of a role; `rest` are further fields of `Order`."""
        path = f"/v1/database/creds/{role}"
        return Order(host=self.host, port=self.port, token=self.token, path=path, clients=clients, **rest)


class Calls:
    """One session of HTTP calls to a measured server."""

    def __init__(self, address: Address, session: aiohttp.ClientSession) -> None:
        self.address = address
        self._session = session

    async def write(self, path: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """PUTs to a path under `/v1/`; raises `Unavailable` with the server's answer unless it is a success."""
        return await self._call("PUT", path, fields)

    async def read(self, path: str) -> dict[str, Any]:
        """GETs a path under `/v1/`; raises as above."""
        return await self._call("GET", path, None)

    async def revoke_all(self, role: str, count: int) -> Figure:
        """Revokes all leases of a role in one call and waits until the server says that they are gone."""
        started_s = stopwatch_s()
        try:
            await self.write(f"sys/leases/revoke-prefix/database/creds/{role}")
        except Unavailable as error:
            return Figure(done=0, seconds=stopwatch_s() - started_s, errors=1, first_error=str(error))
        return Figure(done=count, seconds=stopwatch_s() - started_s)

    async def _call(self, method: str, path: str, fields: Mapping[str, Any] | None) -> dict[str, Any]:
        async with self._session.request(method, f"/v1/{path}", json=fields) as reply:
            text = await reply.text()
            if reply.status not in _SUCCESS:
                raise Unavailable(f"{method} {path}: HTTP {reply.status}: {text[:300]}")
            return dict(await reply.json(content_type=None)) if text else {}


@asynccontextmanager
async def calls(address: Address) -> AsyncIterator[Calls]:
    """A session to a server; closed on the way out."""
    async with aiohttp.ClientSession(
        f"http://{address.host}:{address.port}",
        headers={"X-Vault-Token": address.token.reveal(), "X-Vault-Request": "true"},
        timeout=aiohttp.ClientTimeout(total=_LONGEST_CALL_S),
    ) as session:
        yield Calls(address, session)
