"""The JSON around every answer: Vault's success envelope, and its error bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from pydantic import BaseModel, Field

from broker.api.auth import Auth


class Envelope(BaseModel):
    """What stands around every answer with content. Every key is always there."""

    request_id: str = Field(description="Id of the request; its audit entries and log lines carry it.")
    lease_id: str = Field(description="The lease that was issued or renewed, or empty.")
    renewable: bool = Field(description="Whether that lease can be renewed.")
    lease_duration: int = Field(description="How long that lease lives from now on, in seconds.")
    data: dict[str, object] | None = Field(description="What was asked for.")
    wrap_info: None = Field(description="Always null: answers are not wrapped.")
    warnings: list[str] | None = Field(description="What the caller should know although all went well.")
    auth: Auth | None = Field(description="The token that was made or renewed.")
    mount_type: str = Field(description="Kind of the mount that answered.")


class Errors(BaseModel):
    """What is answered when something did not go well."""

    errors: list[str] = Field(description="What happened, to what, and what to do; may be empty, for what is not there.")


class Keys(BaseModel):
    """Names in a list."""

    keys: list[str] = Field(description="The names; one that ends in `/` has more below it.")


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
