"""The keyed hash that the rooms share."""

from __future__ import annotations

import hmac

from hypothesis import given
from hypothesis import strategies as st

from broker.mac import Mac


@given(st.binary(max_size=100), st.lists(st.binary(max_size=200), max_size=4))
def test_mac_is_hmac_sha256(key: bytes, texts: list[bytes]) -> None:
    """Whatever was hashed before: nothing of one text reaches the next (RFC 2104)."""
    mac = Mac(key)
    assert [mac.digest(text) for text in texts] == [hmac.digest(key, text, "sha256") for text in texts]
