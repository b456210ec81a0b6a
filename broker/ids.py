"""Numbers that grow with time, and the public texts made from them.

A lease id's last part and an accessor are 24 base62 characters: a 64-bit number and a 78-bit MAC over what it stands for.
So the store needs no index with random keys, and nobody can guess one. A token is its number and 131 random bits.
"""

from __future__ import annotations

import hmac
import string

from broker.clock import Clock
from broker.mac import Mac
from broker.model import Accessor, LeaseId, LeaseNumber, TokenNumber
from broker.secret import Secret, random_bytes, random_text

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_VALUE = {character: index for index, character in enumerate(BASE62)}
_PAIRS = [first + second for first in BASE62 for second in BASE62]
_PAIR, _PAIRS_OF_TWO, _CHUNK, _CHUNK_CHARS = 62**2, 62**4, 62**6, 6
PUBLIC_CHARS = 24
_MAC_BITS = 78
_NUMBER_LIMIT = 1 << 63
_SEQUENCE_BITS = 20
"""A number is milliseconds << 20 | sequence: a million a millisecond, and 63 bits last until the year 2248."""
_REQUEST_ID_BYTES = 16
_REQUEST_IDS_AT_ONCE = 256
_TOKEN_PREFIX = "s."
_TOKEN_NUMBER_CHARS = 11
_TOKEN_RANDOM_CHARS = 22


class Numbers:
    """Ever growing 63-bit numbers, unique within one process; another process of the same store starts above the highest stored."""

    def __init__(self, clock: Clock, *, above: int = 0) -> None:
        self._clock = clock
        self._last = above

    def next(self) -> int:
        """A number greater than each one before."""
        self._last = max(self._last + 1, self._clock.now_ms() << _SEQUENCE_BITS)
        return self._last


class PublicIds:
    """Makes and checks lease ids and accessors under one MAC key (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        self._keyed = Mac(key)

    def lease_id(self, path: str, number: LeaseNumber) -> LeaseId:
        """`path`, a slash, and the number authenticated together with the path."""
        return LeaseId(f"{path}/{self._public(f'lease/v1/{path}', number)}")

    def lease_number(self, lease_id: str) -> LeaseNumber | None:
        """The number in a lease id, or None when it is not one that this key made for that path."""
        path, _, public = lease_id.rpartition("/")
        number = self._number(f"lease/v1/{path}", public)
        return None if number is None else LeaseNumber(number)

    def accessor(self, number: TokenNumber) -> Accessor:
        """The accessor of the token with this number."""
        return Accessor(self._public("accessor/v1", number))

    def token_number(self, accessor: str) -> TokenNumber | None:
        """The token's number in an accessor, or None when this key did not make it."""
        number = self._number("accessor/v1", accessor)
        return None if number is None else TokenNumber(number)

    def _mac(self, context: str, number: int) -> int:
        digest = self._keyed.digest(f"{context}\x00{number}".encode())
        return int.from_bytes(digest[:10], "big") & ((1 << _MAC_BITS) - 1)

    def _public(self, context: str, number: int) -> str:
        return encode_base62(number << _MAC_BITS | self._mac(context, number), PUBLIC_CHARS)

    def _number(self, context: str, public: str) -> int | None:
        value = decode_base62(public) if len(public) == PUBLIC_CHARS else None
        if value is None or value >> _MAC_BITS >= _NUMBER_LIMIT:
            return None
        number, mac = value >> _MAC_BITS, value & ((1 << _MAC_BITS) - 1)
        return number if hmac.compare_digest(mac.to_bytes(10, "big"), self._mac(context, number).to_bytes(10, "big")) else None


class RequestIds:
    """Random UUIDs (RFC 9562, version 4) to know requests by; nothing rests on nobody guessing one."""

    def __init__(self) -> None:
        self._random = b""
        self._used = 0

    def next(self) -> str:
        """One that was never given before."""
        if self._used == len(self._random):
            # Many at a time: each question to the operating system lets go of the interpreter, as in `broker.mac`.
            self._random, self._used = random_bytes(_REQUEST_ID_BYTES * _REQUEST_IDS_AT_ONCE), 0
        text = bytearray(self._random[self._used : self._used + _REQUEST_ID_BYTES])
        self._used += _REQUEST_ID_BYTES
        text[6] = text[6] & 0x0F | 0x40
        text[8] = text[8] & 0x3F | 0x80
        digits = text.hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_token(number: TokenNumber) -> Secret:
    """The text of a new token: `s.`, its number, and 22 random base62 characters (131 bits)."""
    return Secret(_TOKEN_PREFIX + encode_base62(number, _TOKEN_NUMBER_CHARS) + random_text(_TOKEN_RANDOM_CHARS, BASE62))


def number_in_token(text: str) -> TokenNumber | None:
    """The number that a token's text claims, or None when it is not shaped like one; the keyed hash decides, not this."""
    if len(text) != len(_TOKEN_PREFIX) + _TOKEN_NUMBER_CHARS + _TOKEN_RANDOM_CHARS or not text.startswith(_TOKEN_PREFIX):
        return None
    body = text[len(_TOKEN_PREFIX) :]
    number = decode_base62(body[:_TOKEN_NUMBER_CHARS])
    return None if number is None or number >= _NUMBER_LIMIT or decode_base62(body) is None else TokenNumber(number)


def encode_base62(value: int, width: int) -> str:
    """`value` in exactly `width` base62 digits, most significant first."""
    # Six digits at a time: most of the work is then on small integers, which halves the time of the 24 digits of a lease id.
    chunks = []
    for _ in range(0, width, _CHUNK_CHARS):
        value, chunk = divmod(value, _CHUNK)
        low, high = chunk % _PAIRS_OF_TWO, chunk // _PAIRS_OF_TWO
        chunks.append(_PAIRS[high] + _PAIRS[low // _PAIR] + _PAIRS[low % _PAIR])
    return "".join(reversed(chunks))[-width:]


def decode_base62(text: str) -> int | None:
    """The integer that the digits stand for, or None when a character is no base62 digit."""
    value = 0
    for character in text:
        digit = _VALUE.get(character)
        if digit is None:
            return None
        value = value * 62 + digit
    return value
