"""What the operator's pages say is what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.api import fields
from broker.api.auth import TokenCreate
from broker.api.database import PREPARED_USERS
from broker.api.fields import check_json, check_shape, decode
from broker.errors import InvalidRequest
from broker.leases import backlog, pump
from broker.leases.settings import LeaseSettings
from broker.metrics import Metrics
from broker.server import incoming
from broker.store.sqlite import writer

OPERATE = Path(__file__).parents[2] / "docs" / "operate"
LIMITS = (OPERATE / "limits.md").read_text()
WATCH = (OPERATE / "watch.md").read_text()


def test_every_metric_is_explained() -> None:
    """By the name that a scrape shows; and none is that there is not."""
    names = {
        family.name + ("_total" if family.type == "counter" else "") for family in Metrics().registry.collect() if family.name
    }
    rows = [line.split("|")[1] for line in WATCH.splitlines() if line.startswith("| `broker_")]
    told = [name.strip("` ") for row in rows for name in row.split(",")]
    assert sorted(told) == sorted(names)


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("values in a JSON body", fields.VALUES),
        ("levels of nesting", fields.NESTING),
        ("fields of a query string", incoming._FORM_FIELDS),
        ("one text", fields.TEXT_CHARS),
        ("items of a list", fields.LIST_ITEMS),
        ("a name, and other short texts", fields.NAME_CHARS),
        ("path", incoming._PATH_CHARS),
        ("prepared users waiting", pump._WAITING_MOST),
        ("writes waiting", writer.MOST_WAITING),
        ("prepared users of a role", PREPARED_USERS),
        ("uses", 1 << 31),
    ],
)
def test_limits_are_told_as_they_are(what: str, most: int) -> None:
    """The page's figure is the code's."""
    (row,) = [line for line in LIMITS.splitlines() if line.startswith(f"| {what}")]
    assert f"{most:,}" in row.split("|")[2]


def test_what_is_watched_is_told_as_it_is() -> None:
    """How far is counted, and the alarm's default."""
    assert f"counted up to {backlog.COUNTED_MOST:,}" in WATCH
    assert f"({LeaseSettings().burst_alarm:,} unless set)" in WATCH


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_body_at_its_limits_is_taken() -> None:
    """What the page allows is allowed, and one more is not."""
    for data in ({"a": _nested(16)}, {"a": [0] * 9_999}):
        check_shape(data)
    check_json(_nested(16), "a")
    assert decode(TokenCreate, {"num_uses": 1 << 31}).num_uses == 1 << 31
    for refused in ({"a": _nested(17)}, {"a": [0] * 10_000}):
        with pytest.raises(InvalidRequest):
            check_shape(refused)
    with pytest.raises(InvalidRequest):
        decode(TokenCreate, {"num_uses": (1 << 31) + 1})
