"""Verification: every kind of damage is found and named, and nothing sound is called broken."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.audit.chain import GENESIS, Chain, Link
from broker.audit.resume import examine
from broker.audit.verify import Report, Wrong, verify

KEY = b"k" * 32
CHAIN = Chain(KEY)


def _log(count: int, after: Link = GENESIS) -> tuple[list[bytes], list[Link]]:
    lines, links = [], []
    for number in range(count):
        after, line = CHAIN.extend(after, [b'{"type":"request","mark":%d}' % number])
        lines.append(line)
        links.append(after)
    return lines, links


LINES, LINKS = _log(12)
HEAD = LINKS[-1]


def _verified(directory: Path, *contents: bytes | Sequence[bytes], head: Link | None = HEAD, key: bytes = KEY) -> Report:
    paths = []
    for number, content in enumerate(contents):
        paths.append(directory / f"audit.{number}.log")
        paths[-1].write_bytes(content if isinstance(content, bytes) else b"".join(content))
    return verify(paths, key, head)


def _said(report: Report) -> tuple[Wrong, str, int, int] | None:
    flaw = report.flaw
    return None if flaw is None else (flaw.wrong, flaw.file.name, flaw.line, flaw.sequence)


def _closed(content: bytes, head: Link | None = None) -> tuple[bytes, Link]:
    """What a broker that starts on this log makes of it, with one entry more."""
    found = examine(io.BytesIO(content), CHAIN, head)
    link, lines = CHAIN.extend(found.link, [*found.entries(0), b'{"type":"request"}'])
    return content + found.terminator + lines, link


def test_a_sound_log_is_intact(tmp_path: Path) -> None:
    """All lines in place: intact, with the extent of each file."""
    report = _verified(tmp_path, LINES[:5], LINES[5:])
    assert report.intact
    assert (report.starts_at, report.ends_at, report.remarks) == (1, 12, [])
    assert [(extent.lines, extent.first, extent.last) for extent in report.extents] == [(5, 1, 5), (7, 6, 12)]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    """Rotation compresses old files; they are verified as they are."""
    old = tmp_path / "audit.log.1.gz"
    old.write_bytes(gzip.compress(b"".join(LINES[:5])))
    new = tmp_path / "audit.log"
    new.write_bytes(b"".join(LINES[5:]))
    assert verify([old, new], KEY, HEAD).intact


def test_a_log_whose_oldest_files_are_gone_says_where_it_starts(tmp_path: Path) -> None:
    """Without the line before it, the first line proves nothing about itself: verification starts after it."""
    report = _verified(tmp_path, LINES[4:])
    assert report.intact
    assert (report.starts_at, report.ends_at) == (6, 12)


def test_a_rotated_file_proves_its_first_line_by_itself(tmp_path: Path) -> None:
    """A rotation note names what it follows, so a file that begins with one is verified from its first line on."""
    content, head = _closed(b"", LINKS[3])
    report = _verified(tmp_path, content, head=head)
    assert report.intact
    assert (report.starts_at, report.ends_at) == (5, 6)


def test_an_empty_log_of_a_new_store_is_intact(tmp_path: Path) -> None:
    """Nothing written, nothing known, nothing wrong."""
    assert _verified(tmp_path, b"", head=None).intact


def test_a_log_that_went_on_is_no_cut_off_tail(tmp_path: Path) -> None:
    """The store's head may be older than the log."""
    assert _verified(tmp_path, LINES, head=LINKS[6]).intact


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([*LINES[:4], LINES[4].replace(b'"mark":4', b'"mark":5'), *LINES[5:]], (Wrong.ALTERED, 5, 5)),
        ([LINES[0].replace(b'"mark":0', b'"mark":1'), *LINES[1:]], (Wrong.ALTERED, 1, 1)),
        ([*LINES[:11], LINES[11].replace(b'"mark":11', b'"mark":12')], (Wrong.ALTERED, 12, 12)),
        ([*LINES[:4], Chain(b"l" * 32).extend(LINKS[3], [b'{"mark":4}'])[1], *LINES[5:]], (Wrong.FORGED, 5, 5)),
        ([*LINES[:4], b'{"type":"request"}\n', *LINES[4:]], (Wrong.FORGED, 5, 5)),
        ([*LINES[:4], b"\n", *LINES[5:]], (Wrong.ALTERED, 5, 5)),
        ([*LINES[:4], *LINES[5:]], (Wrong.MISSING, 5, 5)),
        ([*LINES[:4], *LINES[11:]], (Wrong.MISSING, 5, 5)),
        ([*LINES[:4], LINES[5], LINES[4], *LINES[6:]], (Wrong.OUT_OF_ORDER, 5, 5)),
        ([*LINES[:4], *LINES[9:], *LINES[4:9]], (Wrong.OUT_OF_ORDER, 5, 5)),
        ([*LINES[:4], LINES[3], *LINES[4:]], (Wrong.OUT_OF_ORDER, 5, 5)),
        ([*LINES[:11], LINES[11][:40]], (Wrong.TORN, 12, 12)),
        ([*LINES[:5], LINES[5][:40] + LINES[6], *LINES[7:]], (Wrong.MISSING, 6, 6)),
        (LINES[:9], (Wrong.CUT_OFF, 9, 10)),
        ([], (Wrong.CUT_OFF, 0, 1)),
    ],
)
def test_damage_is_named_where_it_is(tmp_path: Path, lines: list[bytes], said: tuple[Wrong, int, int]) -> None:
    """The first broken line, its number, the sequence that belongs there, and what is wrong with it."""
    assert _said(_verified(tmp_path, lines)) == (said[0], "audit.0.log", *said[1:])


def test_damage_is_named_in_its_file(tmp_path: Path) -> None:
    """Line numbers are those of the file, also in the second one."""
    assert _said(_verified(tmp_path, LINES[:5], LINES[6:])) == (Wrong.MISSING, "audit.1.log", 1, 6)
    assert _said(_verified(tmp_path, LINES[5:], LINES[:5])) == (Wrong.OUT_OF_ORDER, "audit.1.log", 1, 13)


def test_the_missing_are_counted(tmp_path: Path) -> None:
    """The report says which entries are gone."""
    flaw = _verified(tmp_path, [*LINES[:4], *LINES[7:]]).flaw
    assert flaw is not None
    assert flaw.detail == "entries 5 to 7 are missing before it"
    flaw = _verified(tmp_path, LINES[:11]).flaw
    assert flaw is not None
    assert flaw.detail == "the store knows of entries up to 12; entry 12 is cut off"


def test_another_mac_at_the_head_is_a_forgery(tmp_path: Path) -> None:
    """A log made anew by somebody with the key does not agree with the store."""
    assert _said(_verified(tmp_path, LINES, head=Link(6, b"x" * 32))) == (Wrong.FORGED, "audit.0.log", 6, 6)


def test_the_wrong_key_is_suspected(tmp_path: Path) -> None:
    """When not even the first line holds, the key may be another log's, and the report says so."""
    flaw = _verified(tmp_path, LINES, key=b"l" * 32).flaw
    assert flaw is not None
    assert (flaw.line, "or the key is not this log's" in flaw.detail) == (1, True)


@pytest.mark.parametrize("whole", [0, 5])
def test_a_torn_line_that_was_closed_off_is_a_remark(tmp_path: Path, whole: int) -> None:
    """After a crash and a start the log is intact, and the torn line is named."""
    content, head = _closed(b"".join(LINES[:whole]) + LINES[whole][:40])
    report = _verified(tmp_path, content, head=head)
    assert report.intact
    assert report.remarks == [f"{tmp_path}/audit.0.log:{whole + 1}: torn by a crash, and the log goes on after it"]


def test_a_closed_off_fragment_can_not_be_exchanged(tmp_path: Path) -> None:
    """The note vouches for the very bytes that were found."""
    content, head = _closed(b"".join(LINES[:5]) + LINES[5][:40])
    swapped = content.replace(LINES[5][:40], LINES[5][:39] + b"?")
    report = _verified(tmp_path, swapped, head=head)
    assert report.flaw is not None
    assert report.flaw.line == 6


def test_a_tail_that_was_found_missing_stays_broken(tmp_path: Path) -> None:
    """The broker goes on after a cut-off tail, and the gap is still what verification names."""
    content, head = _closed(b"".join(LINES[:5]), LINKS[7])
    assert _said(_verified(tmp_path, content, head=head)) == (Wrong.MISSING, "audit.0.log", 6, 6)


@pytest.mark.parametrize("torn", [b"", LINES[8][:30]])
def test_a_rotation_while_a_crashed_broker_was_down_is_a_remark(tmp_path: Path, torn: bytes) -> None:
    """The new file goes on from the store's head, older than the end of the file that was moved away."""
    new, head = _closed(b"", LINKS[5])
    report = _verified(tmp_path, b"".join(LINES[:8]) + torn, new, head=head)
    assert report.intact
    assert len(report.remarks) == 1 + bool(torn)
    assert "goes on from sequence 6, though the file before ends with 8" in report.remarks[0]


def test_an_old_file_can_not_be_passed_off_inside_a_file(tmp_path: Path) -> None:
    """Only a file's first line may go back; the same line elsewhere is out of order."""
    new, _ = _closed(b"", LINKS[5])
    assert _said(_verified(tmp_path, b"".join(LINES[:8]) + new)) == (Wrong.OUT_OF_ORDER, "audit.0.log", 9, 9)


def test_a_whole_line_at_a_files_end_is_no_torn_one(tmp_path: Path) -> None:
    """What a rotation excuses is a line cut short, not one that was put there."""
    new, head = _closed(b"", LINKS[7])
    report = _verified(tmp_path, [*LINES[:8], b'{"type":"request"}\n'], new, head=head)
    assert _said(report) == (Wrong.FORGED, "audit.0.log", 9, 9)


def test_a_forged_note_excuses_nothing(tmp_path: Path) -> None:
    """Where the line before is not given, a first line can't be explained away by a note that proves nothing."""
    junk = b'{"type":"request"}'
    told = b'{"bytes":%d,"sha256":"%b"}' % (len(junk), hashlib.sha256(junk).hexdigest().encode())
    _, note = Chain(b"l" * 32).extend(LINKS[5], [b'{"type":"recovery","closed_off":%b}' % told])
    assert _said(_verified(tmp_path, junk + b"\n" + note, head=None)) == (Wrong.ALTERED, "audit.0.log", 1, 1)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """What is longer than any line is broken, read in pieces."""
    path = tmp_path / "audit.log"
    path.write_bytes(LINES[0])
    with path.open("r+b") as stream:
        stream.truncate(40 * 1024 * 1024)
    assert _said(verify([path], KEY)) == (Wrong.ALTERED, "audit.log", 2, 2)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """A file that is not there is not taken for an empty one."""
    with pytest.raises(FileNotFoundError):
        verify([tmp_path / "none"], KEY)


_content = b"".join(LINES)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_to_bytes_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One byte changed, a stretch removed, a stretch doubled, or the end cut: found, and named in its line."""
    at = data.draw(st.integers(0, len(_content) - 1))
    until = data.draw(st.integers(at + 1, len(_content)))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != _content[at]))
    damaged = data.draw(
        st.sampled_from(
            [
                _content[:at] + bytes([byte]) + _content[at + 1 :],
                _content[:at] + _content[until:],
                _content[:until] + _content[at:],
                _content[:at],
            ]
        )
    )
    report = _verified(tmp_path_factory.mktemp("log"), damaged)
    if damaged == _content:
        assert report.intact
    elif report.intact:
        # So a log looks whose oldest lines are gone; what is left of them is said to be unproved, the rest is whole.
        assert report.starts_at is not None
        assert report.starts_at > 2
        assert damaged.split(b"\n", 1)[1] == b"".join(LINES[report.starts_at - 1 :])
    else:
        same = next(place for place in range(len(_content) + 1) if damaged[place : place + 1] != _content[place : place + 1])
        assert report.flaw is not None
        damaged_line = damaged[:same].count(b"\n") + (report.flaw.wrong is not Wrong.CUT_OFF)
        # A first line whose number was changed may be one whose forerunners are gone: then the line after it is out of order.
        unproved = damaged_line == 1 and report.starts_at is not None and report.starts_at > 2
        assert report.flaw.line == damaged_line + unproved


def test_a_first_line_with_another_number_is_unproved(tmp_path: Path) -> None:
    """It may be the first that is left of a longer log; what follows it is then out of order."""
    report = _verified(tmp_path, _content.replace(b'"seq":1,', b'"seq":11,', 1))
    assert report.starts_at == 12
    assert report.flaw is not None
    assert (report.flaw.line, report.flaw.wrong) == (2, Wrong.OUT_OF_ORDER)


@settings(max_examples=200)
@given(st.data())
def test_any_other_order_of_lines_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Lines swapped, doubled or left out: the first one that does not belong is named."""
    order = data.draw(st.permutations(range(12)) | st.lists(st.integers(0, 11), min_size=1, max_size=14))
    report = _verified(tmp_path_factory.mktemp("log"), [LINES[number] for number in order])
    in_place = next((place for place, number in enumerate([*order, None]) if number != place), None)
    if list(order) == list(range(12)):
        assert report.intact
    elif order[0] != 0:
        assert not report.intact or (list(order) == list(range(order[0], 12)) and report.starts_at == order[0] + 2)
    elif in_place == len(order):
        assert _said(report) == (Wrong.CUT_OFF, "audit.0.log", len(order), len(order) + 1)
    else:
        assert report.flaw is not None
        assert (report.flaw.line, report.flaw.wrong) in {
            (in_place + 1, Wrong.MISSING),
            (in_place + 1, Wrong.OUT_OF_ORDER),
        }
