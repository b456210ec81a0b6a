"""The chain: what is put into a line, and that nothing else is taken for it."""

from __future__ import annotations

import hashlib
import hmac

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit.chain import GENESIS, LINE_MAX, Chain, Link, is_entry, link_at_end, parse

CHAIN = Chain(b"k" * 32)


def test_a_line_is_the_entry_with_its_chain_before_the_last_brace() -> None:
    """The entry's bytes stay as they are, and the MAC follows the documented rule."""
    entry = b'{"type":"request","path":"a/b"}'
    link, line = CHAIN.extend(GENESIS, [entry])
    derived = hmac.digest(b"k" * 32, b"broker/audit/chain/v1", hashlib.sha256)
    mac = hmac.digest(derived, (1).to_bytes(8, "big") + bytes(32) + entry, hashlib.sha256)
    assert link == Link(1, mac)
    assert line == b'{"type":"request","path":"a/b","chain":{"seq":1,"mac":"%b"}}\n' % mac.hex().encode()
    assert orjson.loads(line)["chain"]["seq"] == 1


def test_lines_follow_one_another() -> None:
    """Each line of a batch follows the one before, and no other."""
    last, lines = CHAIN.extend(Link(41, b"m" * 32), [b'{"a":1}', b'{"a":2}', b'{"a":3}'])
    first, second, third = lines.splitlines(keepends=True)
    one = CHAIN.follow(Link(41, b"m" * 32), first)
    assert one is not None
    two = CHAIN.follow(one, second)
    assert two is not None
    assert CHAIN.follow(two, third) == last == Link(44, last.mac)
    assert CHAIN.follow(one, third) is None
    assert CHAIN.follow(GENESIS, first) is None


def test_another_key_makes_another_chain() -> None:
    """A line made under one key does not follow under another."""
    _, line = CHAIN.extend(GENESIS, [b'{"a":1}'])
    assert Chain(b"l" * 32).follow(GENESIS, line) is None


def test_equal_entries_have_different_macs() -> None:
    """Sequence and predecessor go into the MAC, so a line can't be repeated."""
    last, lines = CHAIN.extend(GENESIS, [b'{"a":1}', b'{"a":1}'])
    first, _ = lines.splitlines(keepends=True)
    assert first.replace(b'"seq":1', b'"seq":2').find(last.mac.hex().encode()) < 0


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"[1]",
        b'"{"',
        b'{"a":1}\n',
        b'{"a":\n1}',
        b'{"a":1',
        b'{"a":"%b"}' % (b"x" * LINE_MAX),
    ],
)
def test_what_is_not_one_object_on_one_line_is_no_entry(bad: bytes) -> None:
    """Only what can become a line that is parsed back is an entry."""
    assert not is_entry(bad)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":7', b'"seq":07'),
        (b'"seq":7', b'"seq":0'),
        (b'"seq":7', b'"seq": 7'),
        (b'"seq":7', b'"seq":-7'),
        (b'"seq":7', b'"seq":77777777777777777777'),
        (b"a1", b"A1"),
        (b"a1", b"a"),
        (b"}}\n", b"}}"),
        (b"}}\n", b"}}\n\n"),
        (b"}}\n", b"}} \n"),
        (b"}}\n", b"}}\r\n"),
        (b'{"a":1', b"{"),
        (b'{"a":1', b'{"a":\n1'),
        (b',"chain"', b', "chain"'),
    ],
)
def test_only_the_exact_form_is_parsed(old: bytes, new: bytes) -> None:
    """Another spelling of the same JSON is not a line."""
    line = b'{"a":1,"chain":{"seq":7,"mac":"%b"}}\n' % (b"a1" * 32)
    assert parse(line) is not None
    assert parse(line.replace(old, new, 1)) is None


def test_an_entry_that_holds_a_chain_of_its_own_is_no_trouble() -> None:
    """Only the end of a line counts, whatever the entry says."""
    inner = b'{"a":1,"chain":{"seq":9,"mac":"%b"}}' % (b"00" * 32)
    link, line = CHAIN.extend(Link(4, b"m" * 32), [inner])
    chained = parse(line)
    assert chained is not None
    assert (chained.entry, chained.link) == (inner, link)


_entries = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), min_size=1, max_size=3).map(
    orjson.dumps
)
_links = st.builds(Link, st.integers(0, 10**18), st.binary(min_size=32, max_size=32))


@given(_links, _entries)
def test_what_was_put_in_comes_out(previous: Link, entry: bytes) -> None:
    """A line parses back to its entry and link, also from its last bytes alone."""
    link, line = CHAIN.extend(previous, [entry])
    chained = parse(line)
    assert chained is not None
    assert (chained.entry, chained.link) == (entry, link)
    assert link_at_end(line[-140:]) == link
    assert CHAIN.follow(previous, line) == link


@given(_links, _entries, st.data())
def test_any_changed_byte_is_noticed(previous: Link, entry: bytes, data: st.DataObject) -> None:
    """A line in which one byte was changed, removed or added does not follow."""
    _, line = CHAIN.extend(previous, [entry])
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != line[at]))
    assert CHAIN.follow(previous, line[:at] + bytes([byte]) + line[at + 1 :]) is None
    assert CHAIN.follow(previous, line[:at] + line[at + 1 :]) is None
    assert CHAIN.follow(previous, line[:at] + bytes([byte]) + line[at:]) is None
