"""The JSON around every answer: Vault's success envelope, and its error bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson


def success(request_id: str, fields: Mapping[str, object]) -> bytes:
    """A whole envelope: every key is there, empty unless `fields` fills it; further keys of `fields` stand beside."""
    return orjson.dumps(
        {
            "request_id": request_id,
            "lease_id": "",
            "renewable": False,
            "lease_duration": 0,
            "data": None,
            "wrap_info": None,
            "warnings": None,
            "auth": None,
            "mount_type": "",
            **fields,
        }
    )


def errors(texts: Sequence[str], data: object = None) -> bytes:
    """An error body: `{"errors": [...]}`, with `data` beside it where there is any."""
    return orjson.dumps({"errors": list(texts)} if data is None else {"errors": list(texts), "data": data})


def multi_error(*texts: str) -> str:
    """Several errors as one text, in the exact bytes of Go's multierror, which clients match on."""
    count = f"{len(texts)} error{'s' if len(texts) > 1 else ''} occurred:\n"
    return count + "".join(f"\t* {text}\n" for text in texts) + "\n"


def ignored_warning(fields: Sequence[str]) -> str:
    """What a caller hears about parameters that the endpoint does not know; sorted and spelt as Go prints a list."""
    return f"Endpoint ignored these unrecognized parameters: [{' '.join(sorted(fields))}]"


def replaced_warning(fields: Sequence[str]) -> str:
    """What a caller hears about parameters that the path gives already."""
    return (
        "Endpoint replaced the value of these parameters with the values captured from the endpoint's path: "
        f"[{' '.join(sorted(fields))}]"
    )
