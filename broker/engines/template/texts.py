"""Vault's functions that make and change texts.

Each takes the moment (Unix milliseconds) and its arguments, and raises `ValueError` with what is wrong with them. Marks follow
the text: what a function makes of random characters counts as random no further than the randomness that went in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import string
import uuid

from broker.engines.template.layout import format_time
from broker.engines.template.traced import CALLER, FIXED, RANDOM, Text, drawn, fixed, hex_digits, join
from broker.ids import BASE62
from broker.secret import random_bytes, random_text

MOST_RANDOM = 512
MOST_CHARS = 65_536
"""A bound on every text on the way, so that chained replacements can't fill the memory."""
_HASH_CHARS = 8
_HEX_MARKS = {RANDOM: FIXED + RANDOM, CALLER: CALLER * 2, FIXED: FIXED * 2}
_MAY_BE_RANDOM = re.compile("[A-Za-z0-9+/]")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)


def random(_now_ms: int, length: int) -> Text:
    """`random n`: n random base62 characters."""
    if not 1 <= length <= MOST_RANDOM:
        raise ValueError(f"random takes a length from 1 to {MOST_RANDOM}, not {length}")
    return drawn(random_text(length, BASE62))


def new_uuid(_now_ms: int) -> Text:
    """`uuid`: a random UUID (RFC 9562 version 4)."""
    made = str(uuid.UUID(bytes=random_bytes(16), version=4))
    # Both digits at places 14 and 19 hold version and variant; every second one of the others is marked, as in `hex_digits`.
    marks = (FIXED + RANDOM) * 4 + FIXED + (FIXED + RANDOM) * 2 + FIXED
    marks += FIXED + FIXED + FIXED + RANDOM + FIXED + FIXED + FIXED + FIXED + RANDOM + FIXED + (FIXED + RANDOM) * 6
    return Text(made, marks)


def truncate(_now_ms: int, length: int, text: Text) -> Text:
    """`truncate n text`: the first n characters."""
    if length < 1:
        raise ValueError(f"truncate takes a length above 0, not {length}")
    return text.first(length)


def truncate_sha256(_now_ms: int, length: int, text: Text) -> Text:
    """`truncate_sha256 n text`: n characters, the last 8 of them a digest of what was cut off."""
    if length <= _HASH_CHARS:
        raise ValueError(f"truncate_sha256 takes a length above {_HASH_CHARS}, not {length}")
    if len(text.chars) <= length:
        return text
    kept = length - _HASH_CHARS
    cut = Text(text.chars[kept:], text.marks[kept:])
    return join((text.first(kept), hex_digits(_sha256(cut)[:_HASH_CHARS], cut.randomness)))


def uppercase(_now_ms: int, text: Text) -> Text:
    """`uppercase text`: small ASCII letters made capital."""
    return Text(text.chars.translate(_UPPER), text.marks)


def lowercase(_now_ms: int, text: Text) -> Text:
    """`lowercase text`: capital ASCII letters made small."""
    return Text(text.chars.translate(_LOWER), text.marks)


def replace(_now_ms: int, find: Text, put: Text, text: Text) -> Text:
    """`replace find put text`: every `find` in the text becomes `put`.

    Neither does `put` count as random, nor, where `find` may match a random character, anything of the text: how many of them
    are left would be a matter of chance.
    """
    if len(text.chars) + text.chars.count(find.chars) * len(put.chars) > MOST_CHARS:
        raise ValueError("replace makes the text too long")
    put = Text(put.chars, put.marks.replace(RANDOM, FIXED))
    if _MAY_BE_RANDOM.search(find.chars):
        text = Text(text.chars, text.marks.replace(RANDOM, FIXED))
    parts, place = [], 0
    for match in re.finditer(re.escape(find.chars), text.chars):
        parts += [Text(text.chars[place : match.start()], text.marks[place : match.start()]), put]
        place = match.end()
    return join((*parts, Text(text.chars[place:], text.marks[place:])))


def sha256(_now_ms: int, text: Text) -> Text:
    """`sha256 text`: its digest in 64 hexadecimal digits."""
    return hex_digits(_sha256(text), text.randomness)


def encode_hex(_now_ms: int, text: Text) -> Text:
    """`hex text`: two hexadecimal digits for each byte."""
    return Text(_bytes(text).hex(), "".join([_HEX_MARKS[mark] for mark in _byte_marks(text)]))


def encode_base64(_now_ms: int, text: Text) -> Text:
    """`base64 text`: standard base64 with padding."""
    encoded = base64.b64encode(_bytes(text)).decode()
    # Four digits carry three bytes, each of them whole with the second, third and fourth digit.
    marks = re.sub("(.).{0,2}", _base64_marks, _byte_marks(text))
    return Text(encoded, marks.ljust(len(encoded), FIXED))


def decode_hex(_now_ms: int, text: Text) -> Text:
    """`decode_hex text`: the bytes that hexadecimal digits stand for."""
    try:
        return _decoded(text, bytes.fromhex(text.chars))
    except ValueError:
        raise ValueError("decode_hex was given something that is not hexadecimal") from None


def decode_base64(_now_ms: int, text: Text) -> Text:
    """`decode_base64 text`: the bytes that standard base64 stands for."""
    try:
        return _decoded(text, base64.b64decode(text.chars, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("decode_base64 was given something that is not base64") from None


def unix_time(now_ms: int) -> Text:
    """`unix_time`: seconds since 1970."""
    return fixed(str(now_ms // 1000))


def unix_time_millis(now_ms: int) -> Text:
    """`unix_time_millis`: milliseconds since 1970."""
    return fixed(str(now_ms))


def timestamp(now_ms: int, layout: Text) -> Text:
    """`timestamp layout`: the moment in UTC, in a Go layout."""
    return fixed(format_time(layout.chars, now_ms))


def glob(_now_ms: int, pattern: Text, text: Text) -> bool:
    """`glob pattern text`: whether the text matches; `*` stands for any characters."""
    first, *middle, last = pattern.chars.split("*") if "*" in pattern.chars else (pattern.chars, "")
    if "*" not in pattern.chars:
        return text.chars == first
    if len(text.chars) < len(first) + len(last) or not (text.chars.startswith(first) and text.chars.endswith(last)):
        return False
    place = len(first)
    for piece in middle:
        found = text.chars.find(piece, place, len(text.chars) - len(last))
        if found < 0:
            return False
        place = found + len(piece)
    return True


def _byte_marks(text: Text) -> str:
    """A mark for each byte of the encoded text."""
    if text.chars.isascii():
        return text.marks
    return "".join([mark * len(_bytes(Text(char, mark))) for char, mark in zip(text.chars, text.marks, strict=True)])


def _base64_marks(group: re.Match[str]) -> str:
    return (FIXED if group[1] == RANDOM else group[1]) + group[0]


def _bytes(text: Text) -> bytes:
    return text.chars.encode("utf-8", "surrogatepass")


def _sha256(text: Text) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()


def _decoded(text: Text, data: bytes) -> Text:
    mark = CALLER if CALLER in text.marks else FIXED
    return Text(data.decode("latin-1"), mark * len(data))
