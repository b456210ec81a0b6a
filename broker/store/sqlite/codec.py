"""Facts as bytes: JSON objects, with the keys and defaults that `broker.model` declares."""

from __future__ import annotations

from msgspec import convert, to_builtins
from msgspec.json import Decoder, Encoder
from msgspec.structs import replace

from broker.model import LeaseFacts, TokenFacts
from broker.secret import Secret

_DIGEST_KEY = "h"
_encoder = Encoder()
_lease_decoder = Decoder(LeaseFacts)
_object_decoder = Decoder(dict[str, object])


def pack_lease(facts: LeaseFacts) -> bytes:
    """All facts but the password, which is sealed by itself so that it can be erased by itself."""
    return _encoder.encode(facts if facts.password is None else replace(facts, password=None))


def unpack_lease(data: bytes, password: bytes | None) -> LeaseFacts:
    """What `pack_lease` packed, with the password beside it."""
    facts = _lease_decoder.decode(data)
    return facts if password is None else replace(facts, password=Secret(password.decode()))


def pack_token(facts: TokenFacts, digest: bytes) -> bytes:
    """Facts and keyed hash of a token."""
    return _encoder.encode({**to_builtins(facts), _DIGEST_KEY: digest.hex()})


def unpack_token(data: bytes) -> tuple[TokenFacts, bytes]:
    """What `pack_token` packed."""
    packed = _object_decoder.decode(data)
    digest = bytes.fromhex(str(packed.pop(_DIGEST_KEY)))
    return convert(packed, TokenFacts), digest
