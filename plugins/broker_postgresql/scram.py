"""Passwords with the verifier that the server keeps of them, so that it never sees a password (RFC 5802, RFC 7677)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from broker.clock import stopwatch_s
from broker.engines.protocol import Password
from broker.errors import EngineError
from broker.secret import Secret, random_bytes

_SALT_BYTES = 16
_KEY_BYTES = 32
_FORM = re.compile(r"SCRAM-SHA-256\$[1-9]\d{0,8}:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=", re.ASCII)
STOCK = 512
"""Pairs kept ready: a burst of requests finds its hashing done. It takes half a second of one core to make them, when it is idle."""
_LOW = 32
"""Below this pairs are made at once; above it without a pause only while nobody was served for a moment."""
_QUIET_S = 0.1
_AT_ONCE = 16
"""Pairs made in one visit to a thread: the visit costs a tenth of a pair."""


def verifier(password: Secret, iterations: int) -> Secret:
    """What PostgreSQL stores for `password`: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, with a random salt.

    Takes about a millisecond of CPU at 4096 iterations, and releases the interpreter meanwhile.
    """
    salt = random_bytes(_SALT_BYTES)
    salted = PBKDF2HMAC(SHA256(), _KEY_BYTES, salt, iterations).derive(password.reveal().encode("ascii"))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client_key).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return Secret(f"SCRAM-SHA-256${iterations}:{_base64(salt)}${_base64(stored)}:{_base64(server)}")


def check_form(text: Secret) -> None:
    """Raises `EngineError` unless the server will take this for a verifier; anything else it would hash as a plain password."""
    if not _FORM.fullmatch(text.reveal()):
        raise EngineError("the password's verifier is not in PostgreSQL's form; it was not sent")


class Stock:
    """Pairs made ahead, in a thread, while nobody waits; made again after they were taken, slowly where somebody is served."""

    _served_s: ClassVar[float] = float("-inf")
    """When anybody was served last, on whichever connection: they share the cores."""

    def __init__(self, new_password: Callable[[], Secret], iterations: int) -> None:
        self._new_password = new_password
        self._iterations = iterations
        self._ready: deque[Password] = deque()
        self._refill: asyncio.Task[None] | None = None

    @classmethod
    def put_off(cls) -> None:
        """Somebody is being served: what can be made later gets little of the time."""
        cls._served_s = stopwatch_s()

    async def take(self) -> Password:
        """A pair nobody else gets; hashed now where none is ready."""
        self.put_off()
        pair = self._ready.popleft() if self._ready else await asyncio.to_thread(self._pair)
        if self._refill is None or self._refill.done():
            self._refill = asyncio.create_task(self._fill())
        return pair

    async def close(self) -> None:
        """Stops refilling and forgets what is ready."""
        self._ready.clear()
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)

    def _pair(self) -> Password:
        text = self._new_password()
        return Password(text=text, verifier=verifier(text, self._iterations))

    def _pairs(self) -> list[Password]:
        return [self._pair() for _ in range(_AT_ONCE)]

    async def _fill(self) -> None:
        while (ready := len(self._ready)) < STOCK:
            if ready >= _LOW and stopwatch_s() - self._served_s < _QUIET_S:
                await asyncio.sleep(_QUIET_S)
            self._ready.extend(await asyncio.to_thread(self._pairs))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
