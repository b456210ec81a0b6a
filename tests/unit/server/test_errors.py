"""Which error becomes which answer, as a table over every class there is."""

from __future__ import annotations

import pytest
import structlog

from broker import errors
from broker.server.errors import log_bug, refusal

_TABLE = [
    (errors.InvalidRequest("bad"), 400, ("bad",), None),
    (errors.PermissionDenied(), 403, ("permission denied",), None),
    (errors.NotFound(), 404, (), None),
    (errors.NotFound("namespace not found"), 404, ("namespace not found",), None),
    (errors.UnsupportedPath(), 404, ("1 error occurred:\n\t* unsupported path\n\n",), None),
    (errors.UnsupportedOperation(), 405, ("1 error occurred:\n\t* unsupported operation\n\n",), None),
    (errors.BodyTooLarge(), 413, ("http: request body too large",), None),
    (errors.LimitExceeded("full", limit="x", retry_after_s=7), 429, ("full",), 7),
    (errors.Unavailable("away", retry_after_s=3), 503, ("away",), 3),
    (errors.Unavailable("away", retry_after_s=0), 503, ("away",), 1),
    (errors.AuditUnavailable("a"), 503, ("a",), 1),
    (errors.StoreUnavailable("s"), 503, ("s",), 1),
    (errors.OutcomeUnknown("o"), 503, ("o",), 1),
    (errors.DatabaseUnavailable("d"), 503, ("d",), 1),
    (errors.EngineMissing("m"), 503, ("m",), 1),
    (errors.UserNameTaken("t"), 503, ("t",), 1),
    (errors.EngineError("e"), 400, ("e",), None),
    (errors.InstructionsFailed("i"), 400, ("i",), None),
    (errors.UserMissing("u"), 400, ("u",), None),
    (errors.UserRemains("r"), 400, ("r",), None),
    (errors.WorkContinues("r"), 400, ("r",), None),
    (errors.StateConflict("c"), 400, ("c",), None),
    (errors.SealBroken("secret"), 500, ("internal error",), None),
    (errors.StoreDamaged("secret"), 500, ("internal error",), None),
    (errors.BrokerError("secret"), 500, ("internal error",), None),
    (errors.AuditBroken("secret"), 500, ("internal error",), None),
    (errors.StoreInUse("secret"), 500, ("internal error",), None),
    (errors.KeyUnusable("secret"), 500, ("internal error",), None),
    (errors.ConfigError(["secret"]), 500, ("internal error",), None),
    (RuntimeError("secret"), 500, ("internal error",), None),
    (KeyError("secret"), 500, ("internal error",), None),
]


@pytest.mark.parametrize(("error", "status", "texts", "retry_after"), _TABLE, ids=lambda value: type(value).__name__)
def test_every_error_has_its_answer(error: Exception, status: int, texts: tuple[str, ...], retry_after: int | None) -> None:
    """Status, texts and Retry-After."""
    found = refusal(error)
    assert (found.status, found.texts, found.retry_after_s) == (status, texts, retry_after)


def test_the_table_misses_no_class() -> None:
    """A new class of error needs a decision here."""
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BrokerError)}
    assert known == {type(row[0]) for row in _TABLE if isinstance(row[0], errors.BrokerError)}


def test_a_bug_is_logged_without_its_text() -> None:
    """Where it came from, but neither message nor variables: either may hold a secret."""
    with pytest.raises(ValueError, match="hunter22") as bug:
        int("hunter22")
    with structlog.testing.capture_logs() as logs:
        log_bug(bug.value)
    (line,) = logs
    assert line["error"] == "ValueError"
    assert "test_errors.py" in line["where"][0]
    assert "hunter22" not in str(logs)
