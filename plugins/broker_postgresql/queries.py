"""The queries of `queries.sql`, by name."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

_NAMED = re.compile(r"^-- :name (\w+)\n(.*?)(?=^-- :name |\Z)", re.MULTILINE | re.DOTALL)


def _load() -> dict[str, str]:
    text = (files("broker_postgresql") / "queries.sql").read_text(encoding="utf-8")
    return {match[1]: match[2].strip() for match in _NAMED.finditer(text)}


QUERIES: Final = _load()
