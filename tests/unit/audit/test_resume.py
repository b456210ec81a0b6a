"""Where the chain goes on, for everything that a log can look like when it is opened."""

from __future__ import annotations

import hashlib
import io

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.audit.chain import GENESIS, Chain, Link
from broker.audit.resume import HANDED_OUT_MAX, Finding, Resumption, closes_off, examine, previous_named
from broker.errors import AuditBroken

CHAIN = Chain(b"k" * 32)


def _log(count: int, after: Link = GENESIS) -> tuple[list[bytes], list[Link]]:
    """Lines of `count` entries, and the link of each."""
    lines, links = [], []
    for number in range(count):
        after, line = CHAIN.extend(after, [b'{"type":"request","mark":%d,"fill":"%b"}' % (number, b"x" * (number * 37 % 500))])
        lines.append(line)
        links.append(after)
    return lines, links


LINES, LINKS = _log(600)


def _examined(content: bytes, head: Link | None) -> Resumption:
    return examine(io.BytesIO(content), CHAIN, head)


def _gone_on(content: bytes, found: Resumption) -> tuple[bytes, Link]:
    """What the log holds after the finding was written down, and one entry more."""
    link, lines = CHAIN.extend(found.link, [*found.entries(0), b'{"type":"request"}'])
    return content + found.terminator + lines, link


def test_an_empty_log_of_a_new_store_is_new() -> None:
    """Nothing to go on from, and nothing to write down."""
    found = _examined(b"", None)
    assert (found.finding, found.link, found.entries(0), found.alert) == (Finding.NEW, GENESIS, (), False)


def test_an_empty_log_goes_on_from_the_head() -> None:
    """A file that was rotated away leaves the store's head, and the first line names what it follows."""
    found = _examined(b"", LINKS[9])
    assert (found.finding, found.link, found.alert) == (Finding.ROTATED, LINKS[9], False)
    (note,) = found.entries(1_790_000_000_123)
    assert orjson.loads(note) == {
        "time": "2026-09-21T14:13:20.123000000Z",
        "type": "rotation",
        "reason": "rotated",
        "previous": {"seq": 10, "mac": LINKS[9].mac.hex()},
    }


@pytest.mark.parametrize("known", [None, LINKS[0], LINKS[300], LINKS[599]])
def test_a_sound_log_goes_on_from_its_last_line(known: Link | None) -> None:
    """However far the store's head lags, authentic lines after it are kept."""
    found = _examined(b"".join(LINES), known)
    assert (found.finding, found.link, found.terminator, found.entries(0)) == (Finding.INTACT, LINKS[599], b"", ())


def test_a_file_that_begins_after_the_head_is_joined_by_its_note() -> None:
    """When the head lies in a file rotated away, the first line of this one is checked by what it names."""
    content, link = _gone_on(b"", _examined(b"", LINKS[99]))
    assert _examined(content, LINKS[50]).link == link
    assert _examined(content, LINKS[50]).finding is Finding.INTACT
    assert _examined(content, None).link == link


def test_a_torn_line_is_closed_off_by_length_and_hash() -> None:
    """The end of a line cut short is named in the entry that follows the last whole line."""
    torn = LINES[10][:57]
    content = b"".join(LINES[:10]) + torn
    found = _examined(content, LINKS[4])
    assert (found.finding, found.link, found.terminator, found.alert) == (Finding.TORN, LINKS[9], b"\n", False)
    (note,) = found.entries(0)
    assert orjson.loads(note)["closed_off"] == {"bytes": 57, "sha256": hashlib.sha256(torn).hexdigest()}
    assert closes_off(CHAIN.extend(found.link, [note])[1], torn)


def test_a_line_that_lacks_only_its_end_is_kept() -> None:
    """A line written whole but for its newline belongs to the chain; only the newline is added."""
    found = _examined(b"".join(LINES[:10])[:-1], LINKS[4])
    assert (found.finding, found.link, found.terminator, found.entries(0)) == (Finding.INTACT, LINKS[9], b"\n", ())


def test_the_first_line_ever_may_be_torn() -> None:
    """A crash in the very first write leaves a log that can go on."""
    found = _examined(LINES[0][:30], None)
    assert (found.finding, found.link) == (Finding.TORN, GENESIS)


@pytest.mark.parametrize("rest", [b"", LINES[90][:40]])
def test_a_missing_tail_is_an_alert_and_the_chain_goes_on_from_the_head(rest: bytes) -> None:
    """A log that ends before the store's head lost lines; the gap is named, and the sequence is not used again."""
    found = _examined(b"".join(LINES[:90]) + rest, LINKS[99])
    assert (found.finding, found.link, found.alert, found.missing) == (Finding.TAIL_MISSING, LINKS[99], True, (91, 100))
    assert orjson.loads(found.entries(0)[0])["missing"] == {"from": 91, "to": 100}


def test_lines_missing_before_the_newest_are_an_alert() -> None:
    """A gap at the head's place alerts, but authentic lines after it are not written a second time."""
    found = _examined(b"".join(LINES[:90] + LINES[100:120]), LINKS[99])
    assert (found.finding, found.link, found.missing) == (Finding.TAIL_MISSING, LINKS[119], (91, 100))


def test_the_heads_place_is_found_however_far_back() -> None:
    """What is missing beside an old head is seen, though much was written since."""
    later = b"".join(LINES[5:])
    assert len(later) > 3 * 64 * 1024
    found = _examined(b"".join(LINES[:3]) + later, LINKS[4])
    assert (found.finding, found.link, found.missing) == (Finding.TAIL_MISSING, LINKS[599], (4, 5))


def test_another_line_in_the_heads_place_is_an_alert() -> None:
    """A line of the head's number with another MAC is not the one that was confirmed."""
    forged = Link(100, b"f" * 32)
    found = _examined(b"".join(LINES[:100]), forged)
    assert (found.finding, found.link, found.missing) == (Finding.ALTERED, forged, None)


def test_altered_lines_after_the_head_are_an_alert() -> None:
    """Complete lines that do not belong to the chain are no accident."""
    found = _examined(b"".join(LINES[:10]) + b'{"type":"request"}\n', LINKS[4])
    assert (found.finding, found.link, found.alert, found.terminator) == (Finding.ALTERED, LINKS[9], True, b"")


def test_a_strangers_log_is_refused() -> None:
    """A new store does not go on with a log made under another key."""
    with pytest.raises(AuditBroken, match="if the store was lost, put its copy back; else move the log away"):
        examine(io.BytesIO(b"".join(LINES[:3])), Chain(b"l" * 32), None)


@pytest.mark.parametrize(
    ("content", "head"),
    [
        (b"".join(LINES[:10]) + LINES[10][:57], LINKS[4]),
        (b"".join(LINES[:90]), LINKS[99]),
        (b"".join(LINES[:90]) + LINES[90][:9], LINKS[99]),
        (b"".join(LINES[:10]) + b"noise\nmore noise\n", LINKS[4]),
        (b"".join(LINES[:100]), Link(100, b"f" * 32)),
        (b"noise\nmore noise", LINKS[4]),
        (LINES[0][:30], None),
        (b"", LINKS[4]),
    ],
)
def test_what_was_written_down_is_not_found_again(content: bytes, head: Link | None) -> None:
    """After the note, a start with the same old head goes on from the newest line: no number is given twice."""
    later, link = _gone_on(content, _examined(content, head))
    again = _examined(later, head)
    assert (again.finding, again.link) == (Finding.INTACT, link)


def test_a_line_that_is_no_note_names_nothing() -> None:
    """Only rotation and recovery entries of the right form name what they follow."""
    for entry in [b'{"type":"request","previous":{"seq":1,"mac":"00"}}', b'{"type":"recovery"}', b'{"type":"recovery","x":}']:
        _, line = CHAIN.extend(GENESIS, [entry])
        assert previous_named(line) is None
    assert previous_named(b"noise\n") is None
    assert not closes_off(b"noise\n", b"noise")


@given(st.integers(0, 20), st.integers(0, 400), st.binary(max_size=60), st.integers(0, 25))
def test_no_wreck_stops_the_chain(whole: int, cut: int, noise: bytes, head: int) -> None:
    """Whatever stands at the end of a log, it is examined, gone on from, and found intact from then on."""
    content = b"".join(LINES[:whole]) + LINES[whole][:cut] + noise
    known = LINKS[head]
    later, link = _gone_on(content, _examined(content, known))
    assert link.sequence > known.sequence
    assert _examined(later, known).link == link


def _answer(path: str, lease_id: str) -> bytes:
    return orjson.dumps({"type": "response", "request": {"path": path}, "response": {"secret": {"lease_id": lease_id}}})


def test_leases_handed_out_after_the_head_are_named() -> None:
    """Those that were given to whoever asked for them; not what was answered before, nor a lease that was renewed or revoked."""
    entries = [
        _answer("database/creds/app", "database/creds/app/before"),
        b'{"type":"request","mark":1}',
        _answer("database/creds/app", "database/creds/app/one"),
        _answer("sys/leases/revoke", "database/creds/app/one"),
        b'{"type":"response","request":{"path":"x"},"response":{"secret":null},"note":"\\"lease_id\\":"}',
        _answer("database/creds/other", "database/creds/other/two"),
    ]
    head, first = CHAIN.extend(GENESIS, entries[:2])
    _, later = CHAIN.extend(head, entries[2:])
    assert _examined(first + later, head).handed_out == ("database/creds/app/one", "database/creds/other/two")
    assert _examined(first + later, None).handed_out[0] == "database/creds/app/before"


def test_no_more_leases_are_named_than_show_it() -> None:
    """The newest of them, however long the log has gone on."""
    _, content = CHAIN.extend(GENESIS, [_answer("a", f"a/{number}") for number in range(HANDED_OUT_MAX + 5)])
    named = _examined(content, None).handed_out
    assert (len(named), named[0], named[-1]) == (HANDED_OUT_MAX, "a/5", f"a/{HANDED_OUT_MAX + 4}")
