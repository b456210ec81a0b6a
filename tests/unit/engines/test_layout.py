"""Go's time layouts."""

from __future__ import annotations

import pytest

from broker.engines.template.layout import format_time

AFTERNOON_MS = 1_700_000_000_120
"""2023-11-14 22:13:20.120, a Tuesday, day 318 of its year."""
MORNING_MS = 1_704_186_065_000
"""2024-01-02 09:01:05, a Tuesday."""


@pytest.mark.parametrize(
    ("layout", "afternoon", "morning"),
    [
        ("2006-01-02T15:04:05Z07:00", "2023-11-14T22:13:20Z", "2024-01-02T09:01:05Z"),
        ("20060102150405", "20231114221320", "20240102090105"),
        ("Mon Jan _2 15:04:05 MST 2006", "Tue Nov 14 22:13:20 UTC 2023", "Tue Jan  2 09:01:05 UTC 2024"),
        ("Monday, 02-Jan-06", "Tuesday, 14-Nov-23", "Tuesday, 02-Jan-24"),
        ("January 2", "November 14", "January 2"),
        ("3:04PM 03pm", "10:13PM 10pm", "9:01AM 09am"),
        ("1/2 3:4:5", "11/14 10:13:20", "1/2 9:1:5"),
        ("002 __2", "318 318", "002   2"),
        ("05.000 05.999 05,00", "20.120 20.12 20,12", "05.000 05 05,00"),
        ("-0700 -07:00 -07 Z0700", "+0000 +00:00 +00 Z", "+0000 +00:00 +00 Z"),
        ("Janus Month", "Janus Month", "Janus Month"),
        ("no elements", "no elements", "no elements"),
    ],
)
def test_layouts_are_written_as_go_writes_them(layout: str, afternoon: str, morning: str) -> None:
    """Each element of a layout becomes its part of the moment in UTC; the rest stays as it is."""
    assert format_time(layout, AFTERNOON_MS) == afternoon
    assert format_time(layout, MORNING_MS) == morning
