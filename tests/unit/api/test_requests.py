"""What requests must say, and what they must not."""

from __future__ import annotations

import pytest

from broker.api.auth import AccessorNamed, TokenCreate, TokenNamed
from broker.api.fields import decode
from broker.api.leases import LeaseNamed, StuckQuery
from broker.api.system import HealthQuery
from broker.errors import InvalidRequest


def test_what_must_be_named_is_asked_for_in_vaults_words() -> None:
    """Clients match on these texts."""
    with pytest.raises(InvalidRequest, match=r"^lease_id must be specified$"):
        decode(LeaseNamed, {}).required_id()
    with pytest.raises(InvalidRequest, match=r"^missing token ID$"):
        decode(TokenNamed, {}).required_token()
    with pytest.raises(InvalidRequest, match=r"^missing accessor$"):
        decode(AccessorNamed, {}).required_accessor()


@pytest.mark.parametrize("fields", [{"id": "mine"}, {"type": "batch"}])
def test_tokens_that_are_not_offered(fields: dict[str, str]) -> None:
    """A token of one's own text, or of another kind, is refused rather than made otherwise."""
    with pytest.raises(InvalidRequest, match="not supported"):
        decode(TokenCreate, fields).supported()


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", "9" * 12, "²"])
def test_wrong_limits_are_refused(limit: str) -> None:
    """Vault's words come first."""
    with pytest.raises(InvalidRequest, match=r"^invalid 'limit' provided: "):
        decode(StuckQuery, {"limit": limit}).listed()


@pytest.mark.parametrize("code", [0, 99, 199, 600, -1])
def test_health_answers_only_with_statuses(code: int) -> None:
    """A number that is no final status of HTTP is refused."""
    with pytest.raises(InvalidRequest, match=r"^activecode: "):
        decode(HealthQuery, {"activecode": code}).status(0)
    with pytest.raises(InvalidRequest, match=r"^overduecode: "):
        decode(HealthQuery, {"overduecode": code}).status(0)


@pytest.mark.parametrize(
    ("fields", "overdue_s", "status"),
    [
        ({}, 10**9, 200),
        ({"maxoverdue": "60"}, 60, 200),
        ({"maxoverdue": "60"}, 61, 503),
        ({"maxoverdue": "1m", "overduecode": "299"}, 61, 299),
        ({"overduecode": 299, "activecode": 204}, 61, 204),
    ],
)
def test_health_minds_a_backlog_only_when_asked_to(fields: dict[str, object], overdue_s: int, status: int) -> None:
    """A balancer that asks for nothing keeps sending requests, whatever waits to be revoked."""
    assert decode(HealthQuery, fields).status(overdue_s) == status
