"""The audit log as the demo shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.audit.verify import Flaw, Report, Wrong
from broker.demo.caller import DemoFailed
from broker.demo.ledger import answered, verdict

LEASE = "database/creds/reader/0123456789abcdefghijklmn"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of one issue, one refusal and one expiry."""
    request = {"operation": "read", "path": "database/creds/reader"}
    entries = [
        {"type": "request", "auth": {"display_name": "token-shop"}, "request": request},
        {
            "type": "response",
            "auth": {"display_name": "token-shop"},
            "request": request,
            "response": {"data": {"username": "v-1", "password": "hmac-sha256:00"}},
        },
        {"type": "response", "auth": {"display_name": "token-shop"}, "request": request, "error": "permission denied"},
        {
            "type": "response",
            "request": {"operation": "revoke", "path": LEASE},
            "response": {"data": {"username": "v-1", "reason": "expired"}},
        },
    ]
    path = tmp_path / "audit.log"
    path.write_text(
        "".join(
            json.dumps({"time": "2026-11-24T18:00:01.234000000Z", **entry, "chain": {"seq": number, "mac": ""}}) + "\n"
            for number, entry in enumerate(entries, 1)
        )
    )
    return path


def test_a_row_for_each_answer(log: Path) -> None:
    """Who, what for, when, and which user it was about; lease ids are cut, since whoever holds one may renew."""
    assert answered(log) == [
        (2, "18:00:01.234", "read", "database/creds/reader", "token-shop: v-1"),
        (3, "18:00:01.234", "read", "database/creds/reader", "token-shop: permission denied"),
        (4, "18:00:01.234", "revoke", "database/creds/reader/012345...", "the broker: v-1"),
    ]


def test_a_whole_log_is_said_to_be_whole() -> None:
    """The number of its lines is told."""
    assert verdict(Report(ends_at=12)) == "12 lines, none altered, none missing"


def test_a_broken_log_ends_the_demo() -> None:
    """A flaw is never shown as a success."""
    report = Report(flaw=Flaw(Wrong.ALTERED, Path("audit.log"), 3, 3, "its text was altered"))
    with pytest.raises(DemoFailed, match="its text was altered"):
        verdict(report)
