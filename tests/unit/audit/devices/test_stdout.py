"""Standard output as a device."""

from __future__ import annotations

import os

import pytest

from broker.audit.devices.stdout import StdoutDevice


def test_lines_reach_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written is there at once; there is nothing to read back."""
    device = StdoutDevice()
    device.open()
    device.write(b"one\n")
    device.flush()
    with device.reader() as reader:
        assert reader.read() == b""
    assert not device.stale()
    device.close()
    assert capfd.readouterr().out == "one\n"


def test_a_line_after_a_torn_one_starts_afresh(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What went out in part can't be taken back, but it does not spoil the next line."""
    whole = os.write
    device = StdoutDevice()
    with monkeypatch.context() as patch:
        attempts = iter([lambda data: whole(1, data[:2]), lambda _data: (_ for _ in ()).throw(BrokenPipeError())])
        patch.setattr(os, "write", lambda _fd, data: next(attempts)(data))
        with pytest.raises(BrokenPipeError):
            device.write(b"one\n")
    device.take_back()
    device.write(b"two\n")
    device.write(b"three\n")
    assert capfd.readouterr().out == "on\ntwo\nthree\n"
