"""Go's time layouts (package time, "Layout"): a sample of the moment 2006-01-02 15:04:05 says how to write another one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ELEMENTS: dict[str, Callable[[datetime], str]] = {
    "January": lambda t: _MONTHS[t.month - 1],
    "Jan": lambda t: _MONTHS[t.month - 1][:3],
    "Monday": lambda t: _DAYS[t.weekday()],
    "Mon": lambda t: _DAYS[t.weekday()][:3],
    "MST": lambda _: "UTC",
    "2006": lambda t: f"{t.year:04}",
    "_2006": lambda t: f"_{t.year:04}",
    "002": lambda t: f"{t.timetuple().tm_yday:03}",
    "__2": lambda t: f"{t.timetuple().tm_yday:3}",
    "_2": lambda t: f"{t.day:2}",
    "01": lambda t: f"{t.month:02}",
    "02": lambda t: f"{t.day:02}",
    "03": lambda t: f"{t.hour % 12 or 12:02}",
    "04": lambda t: f"{t.minute:02}",
    "05": lambda t: f"{t.second:02}",
    "06": lambda t: f"{t.year % 100:02}",
    "15": lambda t: f"{t.hour:02}",
    "1": lambda t: str(t.month),
    "2": lambda t: str(t.day),
    "3": lambda t: str(t.hour % 12 or 12),
    "4": lambda t: str(t.minute),
    "5": lambda t: str(t.second),
    "PM": lambda t: "PM" if t.hour >= 12 else "AM",  # noqa: PLR2004 - noon
    "pm": lambda t: "pm" if t.hour >= 12 else "am",  # noqa: PLR2004 - noon
    "-07:00:00": lambda _: "+00:00:00",
    "-070000": lambda _: "+000000",
    "-07:00": lambda _: "+00:00",
    "-0700": lambda _: "+0000",
    "-07": lambda _: "+00",
    "Z07:00:00": lambda _: "Z",
    "Z070000": lambda _: "Z",
    "Z07:00": lambda _: "Z",
    "Z0700": lambda _: "Z",
    "Z07": lambda _: "Z",
}
# A short name is an element only where no small letter follows, as in Go; longer elements are tried first.
_PATTERN = re.compile(
    "|".join(
        re.escape(element) + ("(?![a-z])" if element in ("Jan", "Mon") else "")
        for element in sorted(_ELEMENTS, key=len, reverse=True)
    )
    + r"|[.,](?:0{1,9}|9{1,9})(?![0-9])"
)


def format_time(layout: str, now_ms: int) -> str:
    """The moment `now_ms` (Unix milliseconds) in UTC, written as the layout shows."""
    moment = _EPOCH + timedelta(milliseconds=now_ms)
    return _PATTERN.sub(lambda match: _element(match[0], moment), layout)


def _element(element: str, moment: datetime) -> str:
    write = _ELEMENTS.get(element)
    if write is not None:
        return write(moment)
    digits = f"{moment.microsecond:06}000"[: len(element) - 1]
    if element[1] == "0":
        return element[0] + digits
    return (element[0] + digits).rstrip("0").rstrip(element[0])
