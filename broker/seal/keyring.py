"""The keys of one store: a versioned data key that seals its values, and the subkeys that other rooms are handed.

    wrapped form    1 | key id (8) | nonce (12) | AES-256-GCM under the master key of the JSON below
                    {"data": [key 1, key 2, ...], "subkeys": {purpose: key}, "seals": n}
    sealed value    version of the data key (2, big-endian) | nonce (12) | ciphertext and tag (16)

Nonces are random, so one data key seals at most 2^31 values (NIST SP 800-38D, 8.3 allows 2^32); then the next version is
made, and older ones only open. Subkeys never change by themselves: what was hashed under them has to be found again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.errors import KeyUnusable, SealBroken
from broker.seal.context import context
from broker.secret import random_bytes

KEY_BYTES = 32
SEALS_PER_VERSION = 1 << 31
SEALS_PER_SAVE = 1 << 24
"""The wrapped form says how many seals were made at most, in steps of this: a crash counts up to one step too many."""
_NONCE_BYTES = 12
_VERSION_BYTES = 2
_HEADER_BYTES = _VERSION_BYTES + _NONCE_BYTES
_LEAST_SEALED_BYTES = _HEADER_BYTES + 16
_WRAP_FORMAT = b"\x01"
_KEY_ID_BYTES = 8


class Purpose(StrEnum):
    """What a subkey is for; each use has one of its own."""

    AUDIT = "audit"
    """HMAC of the audit log: its chain, and the secrets named in it."""
    LEASE_ID = "lease id"
    """MAC in lease ids and accessors."""
    TOKEN = "token"
    """Keyed hash of tokens."""
    MARKER = "marker"
    """MAC of the marker beside a database user."""
    LOOKUP = "lookup"
    """Keyed hashes that stand for sealed names in the store's indexes."""


class Keyring:
    """Seals and opens values, and hands out subkeys. Made by `new` or `unwrap`.

    One thread seals; any may open.
    """

    def __init__(self, master_key: bytes, data_keys: Sequence[bytes], subkeys: Mapping[Purpose, bytes], seals: int) -> None:
        self._master_key = master_key
        self._data_keys = list(data_keys)
        self._subkeys = dict(subkeys)
        self._ciphers = [AESGCM(key) for key in data_keys]
        self._seals = seals
        self._seals_saved = 0
        self._use_newest()

    @classmethod
    def new(cls, master_key: bytes) -> Keyring:
        """Fresh random keys, to be wrapped by `master_key` (32 bytes)."""
        return cls(master_key, [random_bytes(KEY_BYTES)], {purpose: random_bytes(KEY_BYTES) for purpose in Purpose}, 0)

    @classmethod
    def unwrap(cls, wrapped: bytes, master_key: bytes) -> Keyring:
        """The keyring in `wrapped`.

        Raises:
            KeyUnusable: it was wrapped by another master key.
            SealBroken: this is the key, but the wrapped form is damaged.
        """
        key_id, sealed = wrapped[1 : 1 + _KEY_ID_BYTES], wrapped[1 + _KEY_ID_BYTES :]
        if wrapped[:1] != _WRAP_FORMAT or len(sealed) <= _NONCE_BYTES:
            raise SealBroken("the keyring is damaged: its wrapped form is not one that this version knows; restore the store")
        if not hmac.compare_digest(key_id, _key_id(master_key)):
            raise KeyUnusable("the store was sealed under another master key: give the key that it was made with")
        try:
            plain = AESGCM(master_key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _wrap_context(key_id))
        except InvalidTag:
            raise SealBroken("the keyring is damaged, though the master key is the right one: restore the store") from None
        kept: dict[str, Any] = orjson.loads(plain)
        subkeys = {Purpose(name): base64.b64decode(key) for name, key in kept["subkeys"].items()}
        return cls(master_key, [base64.b64decode(key) for key in kept["data"]], subkeys, kept["seals"])

    def wrapped(self) -> bytes:
        """The whole keyring, sealed under the master key; store it, then say so with `saved`."""
        kept = {
            "data": [base64.b64encode(key).decode() for key in self._data_keys],
            "subkeys": {purpose.value: base64.b64encode(key).decode() for purpose, key in self._subkeys.items()},
            "seals": self._seals + SEALS_PER_SAVE,
        }
        key_id, nonce = _key_id(self._master_key), random_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._master_key).encrypt(nonce, orjson.dumps(kept), _wrap_context(key_id))
        return _WRAP_FORMAT + key_id + nonce + sealed

    def saved(self) -> None:
        """What `wrapped` gave is durable."""
        self._seals_saved = self._seals + SEALS_PER_SAVE

    def unsaved(self) -> bool:
        """Whether the wrapped form has to be stored before what is sealed from now on is committed.

        A data key that has sealed its number is followed by a new version here, never in the middle of a transaction.
        """
        if self._seals >= SEALS_PER_VERSION:
            self._data_keys.append(random_bytes(KEY_BYTES))
            self._ciphers.append(AESGCM(self._data_keys[-1]))
            self._seals = self._seals_saved = 0
            self._use_newest()
        return self._seals >= self._seals_saved

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """`plaintext` under the newest data key, bound to `context` (made by `broker.seal.context.context`)."""
        self._seals += 1
        nonce = random_bytes(_NONCE_BYTES)
        return self._newest_version + nonce + self._newest.encrypt(nonce, plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed. Raises SealBroken when it was changed, cut, or sealed by another key or for another place."""
        version = int.from_bytes(sealed[:_VERSION_BYTES], "big")
        if len(sealed) < _LEAST_SEALED_BYTES or not 0 < version <= len(self._ciphers):
            raise SealBroken
        try:
            return self._ciphers[version - 1].decrypt(sealed[_VERSION_BYTES:_HEADER_BYTES], sealed[_HEADER_BYTES:], context)
        except InvalidTag:
            raise SealBroken from None

    def subkey(self, purpose: Purpose) -> bytes:
        """32 bytes for one purpose, the same for the life of the store."""
        return self._subkeys[purpose]

    def _use_newest(self) -> None:
        self._newest = self._ciphers[-1]
        self._newest_version = len(self._ciphers).to_bytes(_VERSION_BYTES, "big")


def _key_id(master_key: bytes) -> bytes:
    """Says which master key it was without helping to find it, so that a wrong key is told from a damaged keyring."""
    return hmac.digest(master_key, context("keyring", 1, "key id"), hashlib.sha256)[:_KEY_ID_BYTES]


def _wrap_context(key_id: bytes) -> bytes:
    return context("keyring", 1, "wrapped", key_id)
