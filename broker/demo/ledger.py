"""The audit log, as the demo shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from broker.audit.verify import Report
from broker.demo.caller import DemoFailed

COLUMNS = ("line", "time", "operation", "path", "who, and what came of it")


_LEASE = re.compile(r"(/creds/[^/]+/\w{6})\w{18}$")
"""A lease id; its first characters tell the two leases of the demo apart."""


def answered(file: Path) -> list[tuple[int, str, str, str, str]]:
    """One row for each operation that has its answer on record."""
    return [_row(entry) for entry in _entries(file) if entry["type"] == "response"]


def verdict(report: Report) -> str:
    """What the verification found. Raises `DemoFailed` when the log is not whole."""
    if report.flaw is not None:
        raise DemoFailed(f"the audit log is broken: {report.flaw.detail}")
    return f"{report.ends_at} lines, none altered, none missing"


def _entries(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _row(entry: Mapping[str, Any]) -> tuple[int, str, str, str, str]:
    request = entry["request"]
    clock = entry["time"].partition("T")[2][:12]
    return entry["chain"]["seq"], clock, request["operation"], _LEASE.sub(r"\1...", request["path"]), _outcome(entry)


def _outcome(entry: Mapping[str, Any]) -> str:
    who = entry.get("auth", {}).get("display_name") or "the broker"
    data = entry.get("response", {}).get("data") or {}
    what = entry.get("error") or data.get("username", "")
    return f"{who}: {what}" if what else who
